"""Convolutions and their gradients are those of XLA, in fewer or in faster products."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upsr_jax.models.build import apply
from upsr_jax.models.layers import UpsampledConv, convolve


def draw(x: jax.Array) -> Any:
    return UpsampledConv(4).init(jax.random.key(0), x)["params"]


@pytest.mark.parametrize(("height", "width"), [(5, 7), (1, 2)])
def test_it_is_the_convolution_of_repeated_pixels(height, width):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, height, width, 3), jnp.float64)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), draw(x))

        def plain(params, x):
            return apply(
                nn.Conv(4, (3, 3), padding=1), params, x.repeat(2, axis=1).repeat(2, axis=2)
            )

        folded = partial(apply, UpsampledConv(4))
        for function in (lambda f: f, lambda f: jax.grad(lambda *a: jnp.sum(f(*a) ** 3), (0, 1))):
            found, expected = (function(f)(params, x) for f in (folded, plain))
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-12), found, expected)


def test_it_counts_four_of_nine_products():
    x = jnp.zeros((1, 64, 64, 4))
    cost = jax.jit(partial(apply, UpsampledConv(4))).lower(draw(x), x).compile().cost_analysis()
    products = 128 * 128 * 4 * 4
    assert cost and 2 * 4 * products <= cost["flops"] < 2 * 6 * products


def test_bfloat16_rounds_the_summed_kernel():
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 4))
    half = apply(UpsampledConv(4, jnp.bfloat16), draw(x), x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, apply(UpsampledConv(4), draw(x), x), atol=0.02)


def plain_convolve(x, kernel, padding):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=names)


def gradient_fn(function, padding):
    """Jit the gradients of a sum of a convolution's squares by image and kernel."""

    def loss(x, kernel):
        return jnp.sum(function(x, kernel, padding) ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize(
    ("image", "kernel", "padding"),
    [
        ((2, 37, 53, 3), (3, 3, 3, 5), ((1, 1), (1, 1))),  # 10 rows at once, 7 are left
        ((1, 600, 8, 4), (2, 2, 4, 6), ((1, 1), (1, 1))),
        ((3, 5, 7, 4), (1, 1, 4, 2), ((0, 0), (0, 0))),
        ((2, 9, 9, 4), (5, 3, 4, 2), ((2, 2), (0, 1))),
    ],
)
def test_a_convolutions_gradients_are_those_of_xla(image, kernel, padding):
    with jax.enable_x64(True):
        x, weights = (
            jax.random.normal(jax.random.key(i), shape, jnp.float64)
            for i, shape in enumerate((image, kernel))
        )
        found = gradient_fn(convolve, padding)(x, weights)
        expected = gradient_fn(plain_convolve, padding)(x, weights)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, expected)


def test_only_a_cpu_computes_a_kernels_gradient_in_loops():
    traced = gradient_fn(convolve, ((1, 1), (1, 1))).trace(
        jnp.ones((1, 8, 8, 4), jnp.bfloat16), jnp.ones((3, 3, 4, 4), jnp.bfloat16)
    )
    for platform, convolutions in (("cpu", 2), ("cuda", 3), ("tpu", 3)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions
        assert ("stablehlo.while" in text) == (platform == "cpu")
