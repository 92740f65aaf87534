"""The convolution of an upsampled image is that, in fewer products."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upsr_jax.models.build import apply
from upsr_jax.models.layers import UpsampledConv


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
