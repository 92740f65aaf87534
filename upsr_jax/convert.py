"""Convert PyTorch state dicts to flax parameters and back, by one table of names for both ways.

Names and shapes are those of the released checkpoints (`upsr.pth`, `atd_real.pth`, LPIPS-VGG).
Conversion moves axes only, so it is exact for any dtype.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from upsr_jax.models.attention import MASKED, SHIFT_REGIONS, relative_position_index
from upsr_jax.models.build import init_denoiser, init_estimator
from upsr_jax.models.lpips import LPIPS, VGG16, conv_names


class Entry(NamedTuple):
    """One parameter: its PyTorch name, its flax path and how the axes move.

    `layout` is "conv" (OIHW <-> HWIO), "pointwise" (OI11 <-> IO), "dense" (OI <-> IO), "head"
    (1C11 <-> C) or "same".
    """

    torch_name: str
    path: tuple[str, ...]
    layout: str


class Buffer(NamedTuple):
    """An array PyTorch stores beside the parameters; it follows from the configuration."""

    torch_name: str
    value: np.ndarray


Config = Any  # arguments of SwinUNet or ATD, in a mapping or ConfigDict
Table = list[Entry | Buffer]


def _layer(torch_name: str, path: tuple[str, ...], layout: str) -> Table:
    return [
        Entry(f"{torch_name}.weight", (*path, "kernel"), layout),
        Entry(f"{torch_name}.bias", (*path, "bias"), "same"),
    ]


def _norm(torch_name: str, path: tuple[str, ...]) -> Table:
    return [
        Entry(f"{torch_name}.weight", (*path, "scale"), "same"),
        Entry(f"{torch_name}.bias", (*path, "bias"), "same"),
    ]


def _res_block(torch_name: str, name: str, changes_width: bool) -> Table:
    table = [
        *_norm(f"{torch_name}.in_layers.0", (name, "norm_in")),
        *_layer(f"{torch_name}.in_layers.2", (name, "conv_in"), "conv"),
        *_layer(f"{torch_name}.emb_layers.1", (name, "time"), "dense"),
        *_norm(f"{torch_name}.out_layers.0", (name, "norm_out")),
        *_layer(f"{torch_name}.out_layers.3", (name, "conv_out"), "conv"),
    ]
    if changes_width:
        table += _layer(f"{torch_name}.skip_connection", (name, "skip"), "pointwise")
    return table


def _swin_layer(torch_name: str, name: str, level: int, config: Config) -> Table:
    window, size = config["window_size"], config["nominal_size"] // 2**level
    index = relative_position_index(window)
    mask = None
    if size > window:
        regions = SHIFT_REGIONS[config["shift_mask"]](size, size, window, window // 2)
        mask = np.where(regions[:, :, None] != regions[:, None, :], np.float32(MASKED), 0)
    table = [
        *_layer(f"{torch_name}.patch_embed.proj", (name, "embed"), "pointwise"),
        *_layer(f"{torch_name}.patch_unembed.proj", (name, "unembed"), "pointwise"),
    ]
    for i in range(config["swin_depth"]):
        block, path = f"{torch_name}.blocks.{i}", (name, f"block_{i}")
        if i % 2 and mask is not None:
            table.append(Buffer(f"{block}.attn_mask", mask))
        bias_path = (*path, "attention", "relative_position_bias")
        table += [
            *_norm(f"{block}.norm1", (*path, "norm_attention")),
            Entry(f"{block}.attn.relative_position_bias_table", bias_path, "same"),
            Buffer(f"{block}.attn.relative_position_index", index),
            *_layer(f"{block}.attn.qkv", (*path, "qkv"), "dense"),
            *_layer(f"{block}.attn.proj", (*path, "attention", "proj"), "dense"),
            *_norm(f"{block}.norm2", (*path, "norm_mlp")),
            *_layer(f"{block}.mlp.fc1", (*path, "mlp_in"), "pointwise"),
            *_layer(f"{block}.mlp.fc2", (*path, "mlp_out"), "pointwise"),
        ]
    return table


def denoiser_table(config: Config) -> Table:
    """List the denoiser's state dict in PyTorch's order; `config` holds SwinUNet's arguments."""
    widths = [config["width"] * multiplier for multiplier in config["multipliers"]]
    levels = range(len(widths))
    table = [
        *_layer("time_embed.0", ("time_0",), "dense"),
        *_layer("time_embed.2", ("time_1",), "dense"),
        *_layer("input_blocks.0.0", ("stem",), "conv"),
    ]
    skips, width, n = [config["width"]], config["width"], 1
    for level in levels:
        for i in range(config["num_res_blocks"][level]):
            block = f"input_blocks.{n}"
            table += _res_block(f"{block}.0", f"down_{level}_res_{i}", width != widths[level])
            if i == 0:
                table += _swin_layer(f"{block}.1", f"down_{level}_swin", level, config)
            width, n = widths[level], n + 1
            skips.append(width)
        if level < levels[-1]:
            table += _layer(f"input_blocks.{n}.0.op", (f"down_{level}_downsample",), "conv")
            n += 1
            skips.append(width)

    table += [
        *_res_block("middle_block.0", "middle_res_0", False),
        *_swin_layer("middle_block.1", "middle_swin", levels[-1], config),
        *_res_block("middle_block.2", "middle_res_1", False),
    ]

    n = 0
    for level in reversed(levels):
        for i in range(config["num_res_blocks"][level] + 1):
            block = f"output_blocks.{n}"
            changes_width = width + skips.pop() != widths[level]
            table += _res_block(f"{block}.0", f"up_{level}_res_{i}", changes_width)
            if i == 0:
                table += _swin_layer(f"{block}.1", f"up_{level}_swin", level, config)
            width, n = widths[level], n + 1
        if level:
            position = 2 if config["num_res_blocks"][level] == 0 else 1
            table += _layer(
                f"output_blocks.{n - 1}.{position}.conv", (f"up_{level}_upsample",), "conv"
            )

    return [
        *table,
        *_layer("conv_before_upsample.0", ("head_in",), "conv"),
        *_layer("conv_up1", ("head_up_0",), "conv"),
        *_layer("conv_up2", ("head_up_1",), "conv"),
        *_layer("conv_hr", ("head_hr",), "conv"),
        *_layer("conv_last", ("head_out",), "conv"),
    ]


def _estimator_layer(torch_name: str, path: tuple[str, ...], refine: bool) -> Table:
    window, tokens = (*path, "window_attention"), (*path, "token_attention")
    category, ffn = (*path, "category_attention"), (*path, "ffn")
    bias_path = (*window, "relative_position_bias")
    return [
        *([Entry(f"{torch_name}.sigma", (*path, "sigma"), "same")] if refine else []),
        *_norm(f"{torch_name}.norm1", (*path, "norm_attn")),
        *_norm(f"{torch_name}.norm2", (*path, "norm_ffn")),
        *(_norm(f"{torch_name}.norm3", (*path, "norm_tokens")) if refine else []),
        *_layer(f"{torch_name}.wqkv", (*path, "qkv"), "dense"),
        Entry(f"{torch_name}.attn_win.relative_position_bias_table", bias_path, "same"),
        *_layer(f"{torch_name}.attn_win.proj", (*window, "proj"), "dense"),
        Entry(f"{torch_name}.attn_atd.scale", (*tokens, "scale"), "same"),
        *_layer(f"{torch_name}.attn_atd.wq", (*tokens, "query"), "dense"),
        *_layer(f"{torch_name}.attn_atd.wk", (*tokens, "key"), "dense"),
        *_layer(f"{torch_name}.attn_atd.wv", (*tokens, "value"), "dense"),
        Entry(f"{torch_name}.attn_aca.logit_scale", (*category, "logit_scale"), "same"),
        *_layer(f"{torch_name}.attn_aca.proj", (*category, "proj"), "dense"),
        *_layer(f"{torch_name}.convffn.fc1", (*ffn, "fc1"), "dense"),
        *_layer(f"{torch_name}.convffn.dwconv.depthwise_conv.0", (*ffn, "depthwise"), "conv"),
        *_layer(f"{torch_name}.convffn.fc2", (*ffn, "fc2"), "dense"),
    ]


def estimator_table(config: Config) -> Table:
    """List the estimator's state dict in PyTorch's order; `config` holds ATD's arguments."""
    index = relative_position_index(config["window_size"])
    table = [
        Buffer("relative_position_index_SA", index),
        *_layer("conv_first", ("conv_first",), "conv"),
        *_norm("patch_embed.norm", ("patch_norm",)),
    ]
    for i, depth in enumerate(config["depths"]):
        group, path = f"layers.{i}", f"group_{i}"
        table += _norm(f"{group}.patch_embed.norm", (path, "norm"))
        table.append(Entry(f"{group}.residual_group.td", (path, "token_dictionary"), "same"))
        for j in range(depth):
            layer = f"{group}.residual_group.layers.{j}"
            table += _estimator_layer(layer, (path, f"layer_{j}"), refine=j < depth - 1)
        table += _layer(f"{group}.conv", (path, "conv"), "conv")
    return [
        *table,
        *_norm("norm", ("norm",)),
        *_layer("conv_after_body", ("conv_after_body",), "conv"),
        *_layer("upsample.0", ("upsample",), "conv"),
    ]


def lpips_table() -> Table:
    """List the state dict of LPIPS-VGG: `features.N` of VGG-16 and the heads `linK.model.1`."""
    table, n = [], 0
    for names in conv_names(VGG16):
        for name in names:
            table += _layer(f"features.{n}", (name,), "conv")
            n += 2  # a convolution and its ReLU
        n += 1  # the pooling
    heads = range(len(VGG16))
    return [*table, *(Entry(f"lin{k}.model.1.weight", (f"head_{k + 1}",), "head") for k in heads)]


def _to_flax(array: np.ndarray, layout: str) -> np.ndarray:
    match layout:
        case "conv":
            return array.transpose(2, 3, 1, 0)
        case "pointwise":
            return array[:, :, 0, 0].T
        case "dense":
            return array.T
        case "head":
            return array.reshape(-1)
        case _:
            return array


def _to_torch(array: np.ndarray, layout: str) -> np.ndarray:
    match layout:
        case "conv":
            return array.transpose(3, 2, 0, 1)
        case "pointwise":
            return array.T[:, :, None, None]
        case "dense":
            return array.T
        case "head":
            return array.reshape(1, -1, 1, 1)
        case _:
            return array


def _torch_shapes(table: Table, params: Any) -> dict[str, tuple[int, ...]]:
    flat: Any = flatten_dict(params)
    shapes = {path: np.empty(leaf.shape, np.bool_) for path, leaf in flat.items()}
    entries = [entry for entry in table if isinstance(entry, Entry)]
    return {e.torch_name: _to_torch(shapes[e.path], e.layout).shape for e in entries}


def _check_shapes(found: Mapping[str, Any], expected: Mapping[str, tuple], fit: str) -> None:
    """Refuse missing, surplus and misshapen arrays by name; `fit` is what doesn't fit what."""
    faults = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    faults += [f"surplus {name} {x.shape}" for name, x in found.items() if name not in expected]
    faults += [
        f"misshapen {name}: {found[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        raise ValueError(
            f"{fit} of this configuration ({len(faults)} of {len(expected)} entries):\n  "
            + "\n  ".join(faults)
        )


def _from_torch(state_dict: Mapping[str, np.ndarray], table: Table, params: Any, name: str) -> dict:
    buffers = {entry.torch_name for entry in table if isinstance(entry, Buffer)}
    found = {key: array for key, array in state_dict.items() if key not in buffers}
    _check_shapes(found, _torch_shapes(table, params), f"the state dict doesn't fit the {name}")
    return unflatten_dict(
        {
            entry.path: np.ascontiguousarray(_to_flax(found[entry.torch_name], entry.layout))
            for entry in table
            if isinstance(entry, Entry)
        }
    )


def _into_torch(params: Mapping, table: Table, shapes: Any, name: str) -> dict[str, np.ndarray]:
    found: Any = flatten_dict(params, sep="/")
    leaves: Any = flatten_dict(shapes, sep="/")
    expected = {key: leaf.shape for key, leaf in leaves.items()}
    _check_shapes(found, expected, f"the params don't fit the {name}")
    return {
        entry.torch_name: entry.value.copy()
        if isinstance(entry, Buffer)
        else np.ascontiguousarray(_to_torch(np.asarray(found["/".join(entry.path)]), entry.layout))
        for entry in table
    }


def _shapes(init_fn: Callable[..., dict], config: Config) -> Any:
    return jax.eval_shape(lambda key: init_fn(key, config), jax.random.key(0))


def denoiser_from_torch(state_dict: Mapping[str, np.ndarray], model_config: Config) -> dict:
    """Convert the denoiser's state dict to flax params of the arrays' dtype.

    Args:
      state_dict: PyTorch names to arrays, without prefix; buffers may be there and are not read.
      model_config: SwinUNet's arguments.

    Raises:
      ValueError: entries are missing, surplus or misshapen; the message lists them all.
    """
    shapes = _shapes(init_denoiser, model_config)
    return _from_torch(state_dict, denoiser_table(model_config), shapes, "denoiser")


def denoiser_to_torch(params: Mapping, model_config: Config) -> dict[str, np.ndarray]:
    """Convert the denoiser's params to a state dict, buffers included; bit for bit.

    Raises:
      ValueError: params are missing, surplus or misshapen; the message lists them all.
    """
    shapes = _shapes(init_denoiser, model_config)
    return _into_torch(params, denoiser_table(model_config), shapes, "denoiser")


def estimator_from_torch(state_dict: Mapping[str, np.ndarray], estimator_config: Config) -> dict:
    """Convert the estimator's state dict as `denoiser_from_torch`; the config is ATD's."""
    shapes = _shapes(init_estimator, estimator_config)
    return _from_torch(state_dict, estimator_table(estimator_config), shapes, "estimator")


def estimator_to_torch(params: Mapping, estimator_config: Config) -> dict[str, np.ndarray]:
    """Convert the estimator's params to a state dict as `denoiser_to_torch`.

    A state dict doesn't show the category size: whoever reads it has to know it.
    """
    shapes = _shapes(init_estimator, estimator_config)
    return _into_torch(params, estimator_table(estimator_config), shapes, "estimator")


def lpips_from_torch(state_dict: Mapping[str, np.ndarray]) -> dict:
    """Convert the state dict of LPIPS-VGG (`features.N.*`, `linK.model.1.weight`) to flax params.

    Raises:
      ValueError: entries are missing, surplus or misshapen; the message lists them all.
    """
    image = jnp.zeros((1, 16, 16, 3))
    shapes = jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)["params"]
    return _from_torch(state_dict, lpips_table(), shapes, "LPIPS")
