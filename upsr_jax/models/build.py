"""Initialize and run the networks."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from upsr_jax.models.atd import ATD
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.swin_unet import SwinUNet

CONFIG_BLOCKS = {"denoiser": "model", "estimator": "estimator"}  # where a config has each


def init_denoiser(key: jax.Array, config: Any) -> Any:
    """Draw the denoiser's float32 parameters; `config` maps names of SwinUNet's arguments."""
    side = config["window_size"] * 2 ** (len(config["multipliers"]) - 1)
    x_t, condition = jnp.zeros((1, side, side, 48)), jnp.zeros((1, side, side, 96))
    return SwinUNet(**config).init(key, x_t, jnp.zeros(1, jnp.int32), condition)["params"]


def init_estimator(key: jax.Array, config: Any) -> Any:
    """Draw the estimator's float32 parameters; `config` maps names of ATD's arguments."""
    side = config["window_size"]
    return ATD(**config).init(key, jnp.zeros((1, side, side, 3)))["params"]


def create_denoiser(config: ModelConfig, remat: str = "none") -> SwinUNet:
    """Build a model's denoiser, computing in config.dtype.

    `remat` saves memory in training and changes no number, see `models.remat.rematerialize`.
    """
    return SwinUNet(**_block(config, "denoiser"), dtype=config.dtype, remat=remat)


def create_estimator(config: ModelConfig, remat: str = "none") -> ATD:
    """Build a model's estimator, computing in float32 even where config.dtype is less.

    It sorts pixels by their nearest token; in bfloat16 too many of them tie. `remat` is as for
    `create_denoiser`.
    """
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    return ATD(**_block(config, "estimator"), dtype=dtype, remat=remat)


def check_params(config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Raise ValueError unless each network has the config's names and shapes, and finite floats."""
    for part, tree in params.items():
        if part not in CONFIG_BLOCKS:
            continue  # LPIPS, which a converted folder may hold and nothing here reads
        if not isinstance(tree, Mapping):
            raise ValueError(f"{part} is an array where a network's arrays belong")
        block = _block(config, part)
        init_fn = {"denoiser": init_denoiser, "estimator": init_estimator}[part]
        try:
            shapes = jax.eval_shape(lambda key: init_fn(key, block), jax.random.key(0))  # noqa: B023
        except Exception as error:  # of values that no network can be built of
            reason = str(error).partition("\n")[0]
            raise ValueError(f"config.{CONFIG_BLOCKS[part]} is of no network: {reason}") from error
        wanted: Any = flatten_dict(shapes, sep="/")
        found: Any = flatten_dict(tree, sep="/")
        for name in sorted(wanted.keys() ^ found.keys()):
            raise ValueError(f"{part} {'lacks' if name in wanted else 'has a surplus'} {name}")
        for name, array in found.items():
            if array.shape != wanted[name].shape:
                raise ValueError(
                    f"{part} has {name} of shape {array.shape} instead of {wanted[name].shape}"
                )
            if not jnp.issubdtype(array.dtype, jnp.floating) or not np.isfinite(array).all():
                raise ValueError(f"{part} holds values that are no finite floats in {name}")


def _block(config: ModelConfig, part: str) -> Mapping[str, Any]:
    block = getattr(config, CONFIG_BLOCKS[part])
    if block is None:
        raise ValueError(f"the config describes no {part}: config.{CONFIG_BLOCKS[part]} is missing")
    return block


def apply(network: nn.Module, params: Any, *inputs: Any) -> Any:
    """Run a network on its params. None of ours has the side results that flax's type speaks of."""
    return network.apply({"params": params}, *inputs)
