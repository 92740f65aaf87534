"""Models of seeded random weights, in the smallest configurations, and changes of a config."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import tiny
from upsr_jax.models.build import init_denoiser, init_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import save_model


def smallest() -> ConfigDict:
    """Return `configs/tiny.py` at its least: one level, few layers, which compiles in seconds."""
    config = tiny.get_config()
    config.model.update(multipliers=(1,), num_res_blocks=(1,), swin_depth=1)
    config.estimator.update(depths=(2,))
    return config


def changed(config: ConfigDict, **values: Any) -> ConfigDict:
    """Copy a config with some values changed, named with `__` between the levels."""
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    return config


def draw(init_fn: Any, block: Any, seed: int = 0) -> Any:
    """Draw params of a network without compiling its own initialization, which takes longer."""
    shapes = jax.eval_shape(lambda key: init_fn(key, block), jax.random.key(0))
    generator = np.random.default_rng(seed)

    def draw_leaf(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        # With this factor pictures are neither flat nor saturated.
        spread = 0.8 / np.sqrt(np.prod(leaf.shape[:-1]))
        return spread * generator.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw_leaf, shapes)


def random_params(config: ConfigDict) -> dict[str, Any]:
    """Draw params of both networks of a config."""
    return {
        "denoiser": draw(init_denoiser, config.model),
        "estimator": draw(init_estimator, config.estimator),
    }


def save_tiny_model(folder: Path, config: ConfigDict | None = None) -> Path:
    """Write a model folder of a config, or the smallest, and return it; it samples in one step."""
    chosen = config or smallest()
    chosen.sampler.steps = 1
    save_model(folder, ModelConfig.of(chosen), random_params(chosen))
    return folder
