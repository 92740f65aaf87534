"""Convolutions and dense layers that start as PyTorch's do."""

from functools import partial
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


Padding = tuple[tuple[int, int], tuple[int, int]]
# Pixels whose neighbourhoods a CPU multiplies at once: they fit into its cache.
AT_ONCE = 512


def _convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=names)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c f"], padding: Padding
) -> Float[Array, "b h2 w2 f"]:
    """Convolve with a stride of 1, zero padded; on CPUs the gradient is fast, too.

    What XLA makes of a kernel's gradient there takes 2 to 6 times as long as the convolution.
    """
    return _convolve(x, kernel, padding)


def _convolve_fwd(x, kernel, padding):
    return _convolve(x, kernel, padding), (x, kernel)


def _convolve_bwd(padding, residuals, gradient):
    x, kernel = residuals
    (of_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, padding), x)(gradient)

    def by_xla(x, kernel, gradient):
        return jax.linear_transpose(lambda k: _convolve(x, k, padding), kernel)(gradient)[0]

    by_products = partial(_kernel_gradient, padding=padding)
    of_kernel = lax.platform_dependent(x, kernel, gradient, cpu=by_products, default=by_xla)
    return of_x, of_kernel


def _kernel_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: Padding
) -> jax.Array:
    """Sum the products of each pixel's neighbourhood and gradient, some rows at a time.

    Each image has a sum of its own, so that images can be split over devices.
    """
    tall, wide, channels, features = kernel.shape
    images, height, width, _ = gradient.shape
    rows = min(height, -(-AT_ONCE // width))
    rest = -height % rows  # rows of zeros, which add nothing
    (above, below), sides = padding
    x = jnp.pad(x, ((0, 0), (above, below + rest), sides, (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, rest), (0, 0), (0, 0)))

    def add(total: jax.Array, top: jax.Array) -> tuple[jax.Array, None]:
        seen = lax.dynamic_slice_in_dim(x, top, rows + tall - 1, axis=1)
        taps = [seen[:, i : i + rows, j : j + width] for i in range(tall) for j in range(wide)]
        part = lax.dynamic_slice_in_dim(gradient, top, rows, axis=1)
        products = jnp.einsum(
            "bhwc,bhwf->bcf",
            *(jnp.concatenate(taps, axis=-1), part),
            preferred_element_type=total.dtype,
        )
        return total + products, None

    total = jnp.zeros(
        (images, tall * wide * channels, features), jnp.promote_types(x.dtype, jnp.float32)
    )
    total, _ = lax.scan(add, total, jnp.arange(0, height, rows))
    return total.sum(axis=0).astype(kernel.dtype).reshape(kernel.shape)


convolve.defvjp(_convolve_fwd, _convolve_bwd)


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

    def with_fast_gradient(x, kernel, strides, padding, **_):
        return convolve(x, kernel, tuple(padding))

    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        stride,
        kernel_size // 2,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        conv_general_dilated=with_fast_gradient if stride == 1 else None,
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
        u: Any = convolve(x, kernel, ((1, 1), (1, 1)))
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
