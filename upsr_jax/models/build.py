"""Initialize and run the networks."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from upsr_jax.models.atd import ATD
from upsr_jax.models.swin_unet import SwinUNet

CONFIG_BLOCKS = {"denoiser": "model", "estimator": "estimator"}  # where a config has each


def init_denoiser(key: jax.Array, config: Mapping[str, Any] | ConfigDict) -> Any:
    """Draw the denoiser's float32 parameters; `config` holds SwinUNet's arguments."""
    side = config["window_size"] * 2 ** (len(config["multipliers"]) - 1)
    x_t, condition = jnp.zeros((1, side, side, 48)), jnp.zeros((1, side, side, 96))
    return SwinUNet(**config).init(key, x_t, jnp.zeros(1, jnp.int32), condition)["params"]


def init_estimator(key: jax.Array, config: Mapping[str, Any] | ConfigDict) -> Any:
    """Draw the estimator's float32 parameters; `config` holds ATD's arguments."""
    side = config["window_size"]
    return ATD(**config).init(key, jnp.zeros((1, side, side, 3)))["params"]


def create_denoiser(config: ConfigDict, remat: str = "none") -> SwinUNet:
    """Build the denoiser of a whole config, computing in config.dtype.

    `remat` saves memory in training and changes no number, see `models.remat.rematerialize`.
    """
    return SwinUNet(**config.model, dtype=config.dtype, remat=remat)


def create_estimator(config: ConfigDict, remat: str = "none") -> ATD:
    """Build the estimator of a whole config, computing in float32 even where config.dtype is less.

    It sorts pixels by their nearest token; in bfloat16 too many of them tie. `remat` is as for
    `create_denoiser`.
    """
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    return ATD(**config.estimator, dtype=dtype, remat=remat)


def apply(network: nn.Module, params: Any, *inputs: Any) -> Any:
    """Run a network on its params. None of ours has the side results that flax's type speaks of."""
    return network.apply({"params": params}, *inputs)
