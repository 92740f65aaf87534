"""Train a denoiser on a CPU as `upsr_jax.main` does, with loss and gradient in bfloat16 by PyTorch.

    pip install -c scripts/constraints.txt -e '.[train,torch]'
    python scripts/train_in_bfloat16.py --config lite_x4 --workdir runs/lite ...

XLA's convolutions on CPUs gain nothing from bfloat16. PyTorch's oneDNN ones run twice as fast in it
where the processor has AVX512-BF16 or AMX: `lscpu` names avx512_bf16 or amx_bf16. Data, prior,
noise, optimizer, averages, checkpoints and evaluation are those of the package. Only the loss and
its gradient go through a callback, for denoisers that sample in one step; parameters and what is
summed stay in float32. Whatever config.loss.lpips_dtype says, LPIPS is computed in bfloat16 too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from absl import app, flags
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.backend import get_backend
from ml_collections import ConfigDict
from torch import Tensor  # pyright: ignore[reportMissingImports]

from upsr_jax.cluster.compiler import use_safe_compiler
from upsr_jax.cluster.join import leave
from upsr_jax.diffusion import Schedule, q_sample, scale_input
from upsr_jax.files.config_files import define_config_flag
from upsr_jax.losses import draw_moves
from upsr_jax.models.attention import SHIFT_REGIONS, relative_position_index
from upsr_jax.models.build import apply, create_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.lpips import MEANS, SPREADS, VGG16, conv_names
from upsr_jax.models.swin_unet import timestep_embedding
from upsr_jax.ops import pixel_unshuffle
from upsr_jax.prior import make_prior
from upsr_jax.train.checkpoints import quiet_orbax
from upsr_jax.train.loop import train_and_evaluate
from upsr_jax.train.step import LossFn

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, metrics and pictures.")

Params = Mapping[str, Tensor]


def main(_: list[str]) -> None:
    """Train; what the user can mend ends it with one sentence."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("upsr_jax").setLevel(logging.INFO)
    use_safe_compiler()
    quiet_orbax()
    cv2.setNumThreads(1)  # as `data.pipeline` asks for
    try:
        train_and_evaluate(
            CONFIG.value, Path(str(WORKDIR.value)), make_loss_fn=make_torch_loss_fn(torch.bfloat16)
        )
    except (OSError, ValueError, FloatingPointError) as error:
        leave(f"train_in_bfloat16: {error}")


def make_torch_loss_fn(dtype: torch.dtype) -> Callable[[ConfigDict, str], LossFn]:
    """Return what `step.make_loss_fn` is, with the denoiser and LPIPS computed in `dtype`.

    Raises ValueError for what isn't written here: training the estimator, several steps, networks
    without `residual`, released LPIPS ranges, remat, several devices and other devices than CPUs.
    """

    def make_loss_fn(config: ConfigDict, remat: str) -> LossFn:
        check(config, remat)
        estimator = create_estimator(ModelConfig.of(config))
        schedule = Schedule.create(**config.diffusion)
        last = config.diffusion.steps - 1
        timestep = int(schedule.timesteps[last])
        grad_fn = make_grad_fn(config, timestep, dtype)

        @jax.custom_vjp
        def loss_and_terms(params, lpips, inputs):
            loss, terms, _ = call(params, lpips, inputs)
            return loss, terms

        def call(params, lpips, inputs):
            rows = jax.ShapeDtypeStruct((len(inputs["hr"]),), jnp.float32)
            scalar = jax.ShapeDtypeStruct((), jnp.float32)
            shapes = (scalar, {"mse": rows, "lpips": rows}, params)
            return jax.pure_callback(grad_fn, shapes, params, lpips, inputs)

        def forward(params, lpips, inputs):
            loss, terms, grads = call(params, lpips, inputs)
            return (loss, terms), grads

        def backward(grads, cotangents):
            return jax.tree.map(lambda x: cotangents[0] * x, grads), None, None

        loss_and_terms.defvjp(forward, backward)

        def loss_fn(params, frozen, batch, keys):
            hr = batch["hr"]
            prior = make_prior(
                lambda image: apply(estimator, frozen["estimator"], image),
                batch["lr"],
                **config.prior,
            )
            _, key_noise = jax.vmap(jax.random.split, out_axes=1)(keys)
            noise = jax.vmap(lambda key: jax.random.normal(key, hr.shape[1:]))(key_noise)
            x_0, y_bic, weight, noise = jax.tree.map(
                pixel_unshuffle, (hr, prior.bicubic, prior.noise_weight, noise)
            )
            t = jnp.full(len(hr), last)
            x_t = q_sample(schedule, x_0, y_bic, weight, noise, t)
            inputs = {
                "x_t": scale_input(schedule, x_t, t),
                **{name: getattr(prior, name) for name in ("condition", "estimate", "bicubic")},
                "hr": hr,
                "moves": draw_moves(keys) & config.loss.lpips_jitter,
            }
            loss, terms = loss_and_terms(params, frozen["lpips"], inputs)
            return loss, {"loss": loss} | jax.tree.map(jnp.mean, terms)

        return loss_fn

    return make_loss_fn


def check(config: ConfigDict, remat: str) -> None:
    """Raise ValueError, with the cure, for a config that this script can't train."""
    wanted = {
        "network": (config.network, "denoiser"),
        "sampler.method": (config.sampler.method, "one_step"),
        "model.residual": (config.model.residual, True),
        "prior.condition": (config.prior.condition, "estimate"),
        "loss.released_lpips_range": (config.loss.released_lpips_range, False),
        "loss.ssim_weight": (config.loss.ssim_weight, 0.0),
        "dtype": (config.dtype, "float32"),
        "pretrained.teacher": (config.pretrained.teacher, ""),
        "train.remat": (remat, "none"),
    }
    for name, (value, needed) in wanted.items():
        if value != needed:
            raise ValueError(
                f"config.{name} is {value!r}, and only {needed!r} is written here: set it so, or "
                "train with python -m upsr_jax.main"
            )
    if config.loss.lpips_weight <= 0:
        raise ValueError("config.loss.lpips_weight is 0: train with python -m upsr_jax.main")
    if get_backend().platform != "cpu" or jax.device_count() > 1:
        raise ValueError("this trains on one CPU: set JAX_PLATFORMS=cpu, or use upsr_jax.main")


def make_grad_fn(config: ConfigDict, timestep: int, dtype: torch.dtype) -> Callable[..., Any]:
    """Build `(params, lpips, inputs) -> (loss, terms, gradient of params)` on arrays of JAX."""
    model = config.model.to_dict()
    # Before the callback: the training loop lets nothing of JAX go to the devices in it.
    wave = as_tensor(timestep_embedding(jnp.array([timestep]), model["width"], jnp.float32))
    weight = config.loss.lpips_weight
    vgg: dict[str, Tensor] = {}  # converted at the first call: it never changes

    def grad_fn(params, lpips, inputs):
        leaves = {
            name: to_torch(name, leaf).requires_grad_()
            for name, leaf in flatten_dict(params, sep="/").items()
        }
        if not vgg:
            vgg.update(
                {name: to_torch(name, leaf) for name, leaf in flatten_dict(lpips, sep="/").items()}
            )
        tensors = {name: as_tensor(x) for name, x in inputs.items()}
        moves = tensors.pop("moves")
        images = {name: rearrange(x, "b h w c -> b c h w") for name, x in tensors.items()}
        hr = images.pop("hr")
        predicted = denoise(leaves, model, wave, dtype, **images)
        terms = {
            "mse": (predicted - hr).square().mean((1, 2, 3)),
            "lpips": lpips_vgg(vgg, move(predicted.clamp(-1, 1), moves), move(hr, moves), dtype),
        }
        loss = (terms["mse"] + weight * terms["lpips"]).mean()
        loss.backward()
        grads = {name: to_flax(name, leaf.grad) for name, leaf in leaves.items()}
        terms = {name: term.detach().numpy() for name, term in terms.items()}
        return loss.detach().numpy(), terms, unflatten_dict(grads, sep="/")

    return grad_fn


def denoise(
    params: Params,
    model: Mapping[str, Any],
    wave: Tensor,
    dtype: torch.dtype,
    x_t: Tensor,
    condition: Tensor,
    estimate: Tensor,
    bicubic: Tensor,
) -> Tensor:
    """Compute `swin_unet.SwinUNet` on NCHW images; returns float32.

    `wave` is the timestep's `swin_unet.timestep_embedding`.
    """

    def weight(name: str) -> Tensor:
        return params[name].to(dtype)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, weight(f"{name}/kernel"), weight(f"{name}/bias"), stride, 1)

    def dense(x: Tensor, name: str) -> Tensor:  # channels last
        return F.linear(x, weight(f"{name}/kernel"), weight(f"{name}/bias"))

    def dense_map(x: Tensor, name: str) -> Tensor:
        return dense(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, weight(f"{name}/scale"), weight(f"{name}/bias"), 1e-5)

    def res_block(x: Tensor, name: str) -> Tensor:
        u = conv(F.silu(norm(x, f"{name}/norm_in")), f"{name}/conv_in")
        modulation = dense(F.silu(embedding), f"{name}/time")[..., None, None]
        scale, shift = modulation.chunk(2, 1)
        u = norm(u, f"{name}/norm_out") * (1 + scale) + shift
        u = conv(F.silu(u), f"{name}/conv_out")
        return u + (dense_map(x, f"{name}/skip") if f"{name}/skip/kernel" in params else x)

    def swin_block(x: Tensor, name: str, shift: int) -> Tensor:
        _, _, height, width = x.shape
        window, head_dim = model["window_size"], model["swin_head_dim"]
        u = norm(x, f"{name}/norm_attention").roll((-shift, -shift), (2, 3))
        u = rearrange(u, "b c (i p) (j q) -> b (i j) (p q) c", p=window, q=window)
        query, key, value = rearrange(
            dense(u, f"{name}/qkv"), "b n t (three h d) -> three b n h t d", three=3, d=head_dim
        )
        # In float32: Muon lets logits grow to 100, where bfloat16 knows no halves.
        logits = query.float() @ key.float().mT * head_dim**-0.5
        table = params[f"{name}/attention/relative_position_bias"]
        logits = logits + table[torch.as_tensor(relative_position_index(window))].permute(2, 0, 1)
        if shift:
            regions = SHIFT_REGIONS[model["shift_mask"]](height, width, window, shift)
            regions = torch.as_tensor(regions)
            apart = regions[:, :, None] != regions[:, None, :]
            logits = logits - 100.0 * apart[:, None]
        u = logits.softmax(-1).to(dtype) @ value
        u = dense(rearrange(u, "b n h t d -> b n t (h d)"), f"{name}/attention/proj")
        u = rearrange(
            u, "b (i j) (p q) c -> b c (i p) (j q)", i=height // window, p=window, q=window
        )
        x = x + u.roll((shift, shift), (2, 3))
        u = F.gelu(dense_map(norm(x, f"{name}/norm_mlp"), f"{name}/mlp_in"))
        return x + dense_map(u, f"{name}/mlp_out")

    def swin_layer(x: Tensor, name: str, level: int) -> Tensor:
        shifted = model["nominal_size"] // 2**level > model["window_size"]
        x = dense_map(x, f"{name}/embed")
        for i in range(model["swin_depth"]):
            shift = model["window_size"] // 2 if shifted and i % 2 else 0
            x = swin_block(x, f"{name}/block_{i}", shift)
        return dense_map(x, f"{name}/unembed")

    def up(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    embedding = dense(wave.to(dtype), "time_0")
    embedding = dense(F.silu(embedding), "time_1")
    u = torch.cat([x_t, condition], 1).to(dtype, memory_format=torch.channels_last)
    u = conv(u, "stem")
    skips, blocks = [u], model["num_res_blocks"]
    for level in range(len(blocks)):
        for i in range(blocks[level]):
            u = res_block(u, f"down_{level}_res_{i}")
            u = swin_layer(u, f"down_{level}_swin", level) if i == 0 else u
            skips.append(u)
        if level < len(blocks) - 1:
            u = conv(u, f"down_{level}_downsample", stride=2)
            skips.append(u)
    u = swin_layer(res_block(u, "middle_res_0"), "middle_swin", len(blocks) - 1)
    u = res_block(u, "middle_res_1")
    for level in reversed(range(len(blocks))):
        for i in range(blocks[level] + 1):
            u = res_block(torch.cat([u, skips.pop()], 1), f"up_{level}_res_{i}")
            u = swin_layer(u, f"up_{level}_swin", level) if i == 0 else u
        u = conv(up(u), f"up_{level}_upsample") if level else u
    u = F.leaky_relu(conv(u, "head_in"), 0.01)
    u = F.leaky_relu(conv(up(u), "head_up_0"), 0.2)
    u = F.leaky_relu(conv(up(u), "head_up_1"), 0.2)
    u = F.leaky_relu(conv(u, "head_hr"), 0.2)
    return keep_colours(conv(u, "head_out").float() + estimate, bicubic)


class ClipImage(torch.autograd.Function):
    """`swin_unet.clip_image`: saturated pixels learn to come back."""

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        ctx.save_for_backward(image)
        return image.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (image,) = ctx.saved_tensors
        outwards = (image.abs() > 1) & (image * gradient < 0)
        return gradient.masked_fill(outwards, 0)


def keep_colours(image: Tensor, bicubic: Tensor) -> Tensor:
    """Compute `swin_unet.keep_colours` on NCHW images."""
    bicubic = bicubic.clamp(-1, 1)

    def tint(image: Tensor) -> Tensor:
        means = F.avg_pool2d(image - bicubic, 4)
        for axis in (2, 3):  # mirrored with the border's own pixels, which F.pad doesn't know
            length = means.shape[axis]
            index = np.pad(np.arange(length), 8, mode="symmetric")
            means = means.index_select(axis, torch.as_tensor(index))
        means = F.avg_pool2d(F.avg_pool2d(means, (17, 1), 1), (1, 17), 1)
        return F.interpolate(means, scale_factor=4, mode="nearest")

    image = ClipImage.apply(image - tint(image))
    return image - tint(image)


def move(image: Tensor, moves: Tensor) -> Tensor:
    """Compute `losses.move` on NCHW images."""
    for axis, border in ((2, (0, 0, 1, 0)), (3, (1, 0, 0, 0))):
        moved = F.pad(image, border, mode="reflect").narrow(axis, 0, image.shape[axis])
        image = torch.where(moves[:, axis - 2, None, None, None], moved, image)
    return image


def lpips_vgg(vgg: Params, image: Tensor, reference: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute `lpips.LPIPS` on NCHW images, features in `dtype`; `reference` gets no gradient."""
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEANS, SPREADS))

    def features(x: Tensor) -> list[Tensor]:
        u = ((x - shift) / scale).to(dtype, memory_format=torch.channels_last)
        outputs = []
        for stage, names in zip(VGG16, conv_names(VGG16), strict=True):
            u = F.max_pool2d(u, stage.pool) if stage.pool else u
            for name in names:
                kernel, bias = (vgg[f"{name}/{part}"].to(dtype) for part in ("kernel", "bias"))
                u = F.relu(F.conv2d(u, kernel, bias, padding=1))
            outputs.append(u.permute(0, 2, 3, 1))
        return outputs

    with torch.no_grad():
        targets = features(reference)
    stages = zip(features(image), targets, (vgg[f"head_{i}"] for i in range(1, 6)), strict=True)
    return torch.stack([FeatureDistance.apply(a, b, head) for a, b, head in stages]).sum(0)


class FeatureDistance(torch.autograd.Function):
    """A stage's part of LPIPS; its gradient, for `a` alone, is computed along with it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, head: Tensor) -> Tensor:
        distance, gradient = compare(a, b, head)
        ctx.save_for_backward(gradient)
        return distance.mean((1, 2))

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer.to(gradient.dtype)[:, None, None, None], None, None


def compare(a: Tensor, b: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Compare features [b, h, w, c] pixel by pixel, in float32; in place, as it is all memory."""
    unit, difference = a.float(), b.float()
    a_scale, b_scale = (
        1 / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-10) for x in (unit, difference)
    )
    unit = unit * a_scale
    difference = difference.mul(-b_scale).add_(unit)
    weighted = difference * head
    distance = torch.linalg.vecdot(weighted, difference)
    # d/da of head . (a/|a| - b/|b|)^2, over the mean's pixels; 0 rather than huge where a is 0.
    along = torch.linalg.vecdot(unit, weighted)[..., None]
    a_scale = torch.where(a_scale < 1e9, a_scale, 0) * 2 / (a.shape[1] * a.shape[2])
    gradient = weighted.sub_(unit.mul_(along)).mul_(a_scale)
    return distance, gradient.to(a.dtype)


def as_tensor(array: Any) -> Tensor:
    """Copy an array of JAX, which can't be written to, into a tensor."""
    return torch.from_numpy(np.array(array))


def to_torch(name: str, leaf: Any) -> Tensor:
    """Lay a parameter out as PyTorch does: kernels as OIHW and [out, in]."""
    tensor = as_tensor(leaf)
    if not name.endswith("kernel"):
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    return tensor.t().contiguous()


def to_flax(name: str, tensor: Tensor) -> np.ndarray:
    """Undo `to_torch`."""
    array = tensor.numpy()
    if not name.endswith("kernel"):
        return array
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
