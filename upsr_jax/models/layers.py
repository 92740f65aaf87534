"""Convolutions and dense layers that start as PyTorch's do."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax import lax
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


# Which of a row's three taps fall on the first and on the second of the two rows that the even and
# the odd rows of an image see, when that image repeats the rows of a smaller one.
FOLDS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


class UpsampledConv(nn.Module):
    """A 3x3 convolution, zero padded, of an image that is first upsampled x2 by repeating pixels.

    Of the nine pixels that each output sees only four differ. So this convolves the smaller image
    with four 2x2 kernels, sums of the one of 3x3, one for each place in a block of 2x2 outputs:
    4/9 of the arithmetic, and equal but for rounding. Parameters are those of the convolution.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w f"]:
        _, height, width, channels = x.shape
        init = uniform(9 * channels)
        kernel = self.param("kernel", init, (3, 3, channels, self.features))
        bias = self.param("bias", init, (self.features,))
        # Summed before it is rounded to less, and exactly: some devices' products are not.
        folds = FOLDS.astype(kernel.dtype)
        kernel = jnp.einsum("iak,jbl,klcf->abcijf", folds, folds, kernel, precision="highest")
        kernel = rearrange(kernel, "a b c i j f -> a b c (i j f)")
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        u = lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        u = rearrange(u, "b h w (i j f) -> b h w i j f", i=2, j=2)
        rows = [
            jnp.stack([u[:, i : i + height, j : j + width, i, j] for j in (0, 1)], axis=3)
            for i in (0, 1)
        ]
        return rearrange(jnp.stack(rows, axis=2), "b h i w j f -> b (h i) (w j) f") + bias


def dense(
    x: Float[Array, "... c"], features: int, name: str, *, dtype: Any = None
) -> Float[Array, "... f"]:
    """Apply a dense layer, which a 1x1 convolution is too; call it in a compact method."""
    init = uniform(x.shape[-1])
    return nn.Dense(features, kernel_init=init, bias_init=init, dtype=dtype, name=name)(x)
