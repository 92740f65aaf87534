"""A set to evaluate on, and a cheap stand-in for the networks."""

from pathlib import Path

import cv2
import jax.numpy as jnp
from ml_collections import ConfigDict
from photos import draw_photo
from tiny_model import random_params

from configs import tiny
from upsr_jax.upscale.restore import Restoration
from upsr_jax.weights.model_folder import save_model

# Of the low-resolution images: one is cut in tiles, and two share a file name.
SIZES = {"a/x": (20, 24), "b/x": (16, 16), "large": (150, 50)}
SEED = 3


def enlarge(image):
    return image.repeat(4, axis=-3).repeat(4, axis=-2)


def make_noisy_resize(config: ConfigDict, fidelity: float = 0.0):
    """Stand in for the networks: repeat pixels, add noise, darken the other images."""

    def restore(params, lr, noise):
        big = enlarge(lr)
        weight = jnp.clip(jnp.abs(big), 0.4, 1)
        return Restoration(jnp.clip(big + 0.2 * noise, -1, 1), big * 0.9, big * 0.8, weight)

    return restore


def write_pair(folder: Path, name: str, seed: int, height: int, width: int) -> None:
    for kind, scale in (("gt", 4), ("lq", 1)):
        path = folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), draw_photo(seed, scale * height, scale * width)[..., ::-1])


def write_set(folder: Path) -> ConfigDict:
    """Write pairs of different sizes, and a model that fits the config of their evaluation."""
    for seed, (name, size) in enumerate(SIZES.items()):
        write_pair(folder, name, seed, *size)
    config = tiny.get_config()
    model = str(folder / "model")
    config.eval.update(
        model=model, gt=str(folder / "gt"), lr=str(folder / "lq"), seed=SEED, pictures=2
    )
    config.eval.update(tile=128, per_device_batch=2, metrics=("psnr_y", "ssim_y", "lpips_alex"))
    config.train.keep_best = "lpips_alex"
    save_model(model, config, random_params(config))
    return config.lock()


def changed(config: ConfigDict, **settings) -> ConfigDict:
    config = config.copy_and_resolve_references().unlock()
    config.eval.update(**settings)
    return config
