"""Evaluate a model on pairs: restore every low-resolution image and measure the result.

Protocol: one run per image, padded by reflection to a multiple of 64 and cropped; noise drawn from
the seed plus the image's number; metrics on the clipped, unrounded result (`describe_protocol`).
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax.config import check_config
from upsr_jax.data.degradation import degrade, to_bytes, to_unit
from upsr_jax.data.sources import Pair, eval_pairs, list_images, read_image
from upsr_jax.inference import SIZE_MULTIPLE, Restoration, make_super_resolve, padded_side
from upsr_jax.metrics.psnr_ssim import psnr_y, ssim_y
from upsr_jax.models.lpips import LPIPS
from upsr_jax.networks import apply
from upsr_jax.pretrained import load_lpips_vgg, load_networks
from upsr_jax.run_checkpoints import read_checkpoint
from upsr_jax.sharding import create_mesh, put, replicated
from upsr_jax.tiling import noise_window, pad_reflect

METRICS = ("psnr_y", "ssim_y", "lpips_vgg")


class Report(NamedTuple):
    """Mean of each metric, the metrics of each image, and a picture of the first images.

    `means` and `rows` also hold the metrics of bicubic upsampling, as `bicubic_NAME`.
    """

    means: dict[str, float]
    rows: dict[str, dict[str, float]]
    picture: np.ndarray


class NamedPair(NamedTuple):
    """A pair and the name of its image, its path within the folder."""

    name: str
    pair: Pair


def load_pairs(config: ConfigDict) -> list[NamedPair]:
    """Load the pairs of config.eval: two folders, or one whose images are degraded here.

    Without `lr`, the ground truth is the centre square of each image, at most `crop_size` wide,
    and the degradation the same each time.
    """
    gt, limit = config.eval.gt, config.eval.max_images
    if config.eval.lr:
        found = itertools.islice(eval_pairs(gt, config.eval.lr), limit)
        return [NamedPair(name, Pair(hr, lr)) for name, hr, lr in found]
    settings = config.degradation.to_dict()
    use_sharp = settings.pop("use_sharp")
    if use_sharp:
        raise ValueError("evaluation compares with unsharpened images: set use_sharp to False")
    pairs = []
    for i, file in enumerate(list_images(gt)[:limit]):
        hr = centre_crop(read_image(file), config.eval.crop_size)
        rng = np.random.default_rng((config.eval.seed, i))
        lr = to_bytes(degrade(rng, to_unit(hr), **settings))
        pairs.append(NamedPair(Path(file).relative_to(gt).as_posix(), Pair(hr, lr)))
    return pairs


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Cut the centre square of at most `size` pixels, its side a multiple of 4."""
    side = min(size, *image.shape[:2]) // 4 * 4
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


class Evaluator:
    """Evaluate params on the pairs of config.eval; keeps pairs and compiled programs.

    Every process computes all of it. The params may lie split over `mesh`.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        if min(config.eval.max_images, config.eval.pictures) < 1:
            raise ValueError("config.eval.max_images and config.eval.pictures must be at least 1")
        self.config = config
        self.pairs = load_pairs(config)
        self.lpips = jax.device_put(load_lpips_vgg())
        super_resolve = make_super_resolve(config)

        def gather_and_super_resolve(params, lr, noise):
            params = jax.lax.with_sharding_constraint(params, replicated(mesh))
            return super_resolve(params, lr, noise)

        self.super_resolve = jax.jit(gather_and_super_resolve, out_shardings=replicated(mesh))
        self.measure = jax.jit(measure)

    def __call__(self, params: Mapping[str, Any], show_progress: bool = False) -> Report:
        """Restore and measure every pair."""
        rows, strips = {}, []
        for i, (name, pair) in enumerate(tqdm(self.pairs, unit="image", disable=not show_progress)):
            lr = to_unit(pair.lr)[None]
            restored = self.restore(params, lr, i)
            hr = to_unit(pair.hr)[None]
            bicubic = np.clip((restored.bicubic + 1) / 2, 0, 1)
            values = self.measure(self.lpips, (restored.image + 1) / 2, hr)
            of_bicubic = self.measure(self.lpips, bicubic, hr)
            rows[name] = {key: float(value[0]) for key, value in values.items()}
            rows[name] |= {f"bicubic_{key}": float(value[0]) for key, value in of_bicubic.items()}
            if i < self.config.eval.pictures:
                strips.append(picture_strip(lr[0], restored, hr[0]))
        means = {key: float(np.mean([row[key] for row in rows.values()])) for key in rows[name]}
        return Report(means, rows, stack_strips(strips))

    def restore(self, params: Mapping[str, Any], lr: np.ndarray, number: int) -> Restoration:
        """Restore one unit image [1, h, w, 3], padded to a multiple of 64 and cropped."""
        height, width = lr.shape[1:3]
        padded = padded_side(height), padded_side(width)
        noise = noise_window(self.config.eval.seed + number, 0, 0, 4 * padded[0], 4 * padded[1])
        image = pad_reflect(lr[0], *padded)[None]
        restored = self.super_resolve(params, 2 * image - 1, noise[None])
        return Restoration(*(np.asarray(x)[:, : 4 * height, : 4 * width] for x in restored))


def measure(lpips_params: Any, image: jax.Array, hr: jax.Array) -> dict[str, jax.Array]:
    """Measure unit images [b, h, w, 3] against the ground truth; one number each [b]."""
    lpips = apply(LPIPS(), lpips_params, 2 * image - 1, 2 * hr - 1)
    return dict(zip(METRICS, (psnr_y(image, hr), ssim_y(image, hr), lpips), strict=True))


def picture_strip(lr: np.ndarray, restored: Restoration, hr: np.ndarray) -> np.ndarray:
    """Put LR, bicubic, estimate, noise weight, result and ground truth side by side, 8 bits."""
    signed = [restored.bicubic, restored.estimate]
    panels = [
        lr.repeat(4, axis=0).repeat(4, axis=1),
        *((x[0] + 1) / 2 for x in signed),
        restored.noise_weight[0],
        (restored.image[0] + 1) / 2,
        hr,
    ]
    return np.concatenate([to_bytes(panel) for panel in panels], axis=1)


def stack_strips(strips: list[np.ndarray]) -> np.ndarray:
    """Stack strips below each other, narrower ones filled with white."""
    width = max(strip.shape[1] for strip in strips)
    white = (255, 255, 255)
    filled = [
        cv2.copyMakeBorder(s, 0, 0, 0, width - s.shape[1], cv2.BORDER_CONSTANT, value=white)
        for s in strips
    ]
    return np.concatenate(filled)


def load_params(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Load the model folder config.eval.model, or else the last checkpoint in `workdir`.

    Raises ValueError if networks are missing or others than the config's.
    """
    if not config.eval.model:
        return read_checkpoint(workdir).model
    return load_networks(config.eval.model, config, ["estimator", config.network])


def describe_protocol(config: ConfigDict, images: int) -> dict[str, Any]:
    """List everything a number depends on beside the weights."""
    return {
        "model": config.eval.model or "the workdir's",
        "ground truth": config.eval.gt,
        "low resolution": config.eval.lr or f"degraded here, seed {config.eval.seed}",
        "images": images,
        "sampler": "none, the estimate itself"
        if config.network == "estimator"
        else config.sampler.method
        if config.sampler.method == "one_step"
        else f"{config.sampler.method}, {config.sampler.steps} steps",
        "noise weight": f"un {config.prior.un}, min_noise {config.prior.min_noise}",
        "seed": config.eval.seed,
        "arithmetic": f"{config.dtype} on {jax.devices()[0].device_kind}",
        "tiling": f"none; padded by reflection to multiples of {SIZE_MULTIPLE}",
        "colours": "PSNR and SSIM on Y of BT.601 YCbCr (16..235), no border crop",
        "rounding": "metrics on the clipped float result, not rounded to 8 bits",
        "LPIPS": "VGG-16, version 0.1",
    }


def evaluate(config: ConfigDict, workdir: str | Path) -> Report:
    """Evaluate a trained model, print the means and write `workdir/evaluation/`.

    The folder gets results.json (protocol, means, every image) and a picture.
    """
    check_config(config)
    workdir = Path(workdir)
    mesh = create_mesh(**config.mesh)
    params = load_params(config, workdir)
    params = put(params, jax.tree.map(lambda _: replicated(mesh), params))
    report = Evaluator(config, mesh)(params, show_progress=jax.process_index() == 0)
    if jax.process_index() != 0:
        return report
    folder = workdir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    protocol = describe_protocol(config, len(report.rows))
    results = {"protocol": protocol, "means": report.means, "images": report.rows}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    cv2.imwrite(str(folder / "pictures.png"), report.picture[..., ::-1])
    print(*(f"{key}: {value}" for key, value in protocol.items()), sep="\n")
    print(f"\n{'':10}{'PSNR-Y':>10}{'SSIM-Y':>10}{'LPIPS-VGG':>12}")
    for label, prefix in (("bicubic", "bicubic_"), ("this model", "")):
        psnr, ssim, lpips = (report.means[prefix + metric] for metric in METRICS)
        print(f"{label:10}{psnr:>10.3f}{ssim:>10.4f}{lpips:>12.4f}")
    return report
