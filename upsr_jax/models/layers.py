"""Convolutions and dense layers that start as PyTorch's do."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jaxtyping import Array, Float


def uniform(fan_in: int) -> Initializer:
    """Draw from ±1/sqrt(fan_in): PyTorch's default for kernels and biases of convolutions."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) * fan_in**-0.5

    return init


def conv(
    x: Float[Array, "b h w c"],
    features: int,
    name: str,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    zero: bool = False,
    dtype: Any = None,
) -> Float[Array, "b h2 w2 f"]:
    """Apply a convolution with bias, zero padded by kernel_size // 2; call it in a compact method.

    `zero` starts kernel and bias at zero, for the last layer of a residual branch.
    """
    init = nn.initializers.zeros_init() if zero else uniform(kernel_size**2 * x.shape[-1])
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        stride,
        kernel_size // 2,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        name=name,
    )(x)


def dense(
    x: Float[Array, "... c"], features: int, name: str, *, dtype: Any = None
) -> Float[Array, "... f"]:
    """Apply a dense layer, which a 1x1 convolution is too; call it in a compact method."""
    init = uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)(x)
