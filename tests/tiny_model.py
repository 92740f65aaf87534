"""A model of seeded random weights, in the smallest configuration."""

from pathlib import Path

import jax
import numpy as np

from configs import tiny
from upsr_jax.checkpoint import save_model
from upsr_jax.networks import init_denoiser, init_estimator


def random_params(seed: int = 0) -> dict:
    """Draw params of `configs/tiny.py` without compiling the networks' own initialization."""
    config = tiny.get_config().to_dict()
    shapes = {
        "denoiser": jax.eval_shape(
            lambda key: init_denoiser(key, config["model"]), jax.random.key(0)
        ),
        "estimator": jax.eval_shape(
            lambda key: init_estimator(key, config["estimator"]), jax.random.key(0)
        ),
    }
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        spread = 0.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        return spread * generator.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def save_tiny_model(folder: Path) -> Path:
    """Write the model folder and return it; it samples in one step, which compiles fast."""
    config = tiny.get_config()
    config.sampler.steps = 1
    save_model(folder, config, random_params())
    return folder
