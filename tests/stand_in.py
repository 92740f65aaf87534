"""Cheap stand-ins for the networks, and a set to evaluate on."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict
from photos import draw_photo, enlarge, save
from tiny_model import random_params, smallest

from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.restore import Restoration
from upsr_jax.weights.model_folder import save_model

# Of the low-resolution images: one is cut in tiles, and two share a file name.
SIZES = {"a/x": (20, 24), "b/x": (16, 16), "large": (150, 50)}
SEED = 3


def restoration(image: Any) -> Restoration:
    return Restoration(image, image, image, image)


def repeat(params, lr, noise) -> Restoration:
    """Repeat each pixel: a model that sees nothing around a pixel and no noise."""
    return restoration(enlarge(lr))


def make_noisy_resize(config: ConfigDict, fidelity: float = 0.0):
    """Stand in for the networks: repeat pixels, add noise, darken the other images."""

    def restore(params, lr, noise):
        big = enlarge(lr)
        weight = jnp.clip(jnp.abs(big), 0.4, 1)
        return Restoration(jnp.clip(big + 0.2 * noise, -1, 1), big * 0.9, big * 0.8, weight)

    return restore


def write_pair(folder: Path, name: str, seed: int, height: int, width: int) -> None:
    for kind, scale in (("gt", 4), ("lq", 1)):
        save(folder / kind / f"{name}.png", draw_photo(seed, scale * height, scale * width))


def write_set(folder: Path) -> ConfigDict:
    """Write pairs of different sizes, and a model that fits the config of their evaluation."""
    for seed, (name, size) in enumerate(SIZES.items()):
        write_pair(folder, name, seed, *size)
    config = smallest()
    model = str(folder / "model")
    config.eval.update(
        model=model, gt=str(folder / "gt"), lr=str(folder / "lq"), seed=SEED, pictures=2
    )
    config.eval.update(tile=128, per_device_batch=2, metrics=("psnr_y", "ssim_y", "lpips_alex"))
    config.train.keep_best = "lpips_alex"
    save_model(model, ModelConfig.of(config), random_params(config))
    return config.lock()
