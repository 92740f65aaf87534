"""Window attention: who sees whom, and the numbers, against closed forms."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upsr_jax.models.attention import (
    attend,
    relative_position_bias,
    relative_position_index,
    released_regions,
    swin_regions,
    window_partition,
    window_reverse,
)

HEIGHT, WIDTH, WINDOW, SHIFT = 8, 12, 4, 2


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def softmax_attention(query, key, value, bias):
    """Attend in NumPy, float64, for one window and head."""
    logits = query @ key.T + bias
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ value


def test_windows_are_cut_row_by_row_and_put_back():
    x = np.arange(2 * HEIGHT * WIDTH * 3, dtype=np.float32).reshape(2, HEIGHT, WIDTH, 3)
    windows = window_partition(jnp.asarray(x), WINDOW)
    places = itertools.product(range(2), range(0, HEIGHT, WINDOW), range(0, WIDTH, WINDOW))
    expected = [
        x[b, top : top + WINDOW, left : left + WINDOW].reshape(-1, 3) for b, top, left in places
    ]
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(window_reverse(windows, WINDOW, HEIGHT, WIDTH), x)


def test_relative_position_index_of_a_small_window():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    np.testing.assert_array_equal(relative_position_index(2), expected)


def test_relative_position_bias_depends_on_the_offset_alone():
    window = 3
    table = jnp.arange(25 * 2, dtype=jnp.float32).reshape(25, 2)
    bias = relative_position_bias(table, window)
    assert bias.shape == (2, 9, 9)
    tokens = list(itertools.product(range(window), repeat=2))
    for (i, (row, col)), (j, (other_row, other_col)) in itertools.product(
        enumerate(tokens), repeat=2
    ):
        index = (row - other_row + 2) * 5 + col - other_col + 2
        np.testing.assert_array_equal(bias[:, i, j], [2 * index, 2 * index + 1])


def shifted_attention(x: jax.Array, shift: int) -> jax.Array:
    """Attend within windows of the rolled map, pixels being query, key and value in one."""
    regions = swin_regions(HEIGHT, WIDTH, WINDOW, shift) if shift else None
    rolled = jnp.roll(x, (-shift, -shift), axis=(1, 2))
    windows = window_partition(rolled, WINDOW)[:, None]
    out = window_reverse(
        attend(windows, windows, windows, None, regions)[:, 0], WINDOW, *x.shape[1:3]
    )
    return jnp.roll(out, (shift, shift), axis=(1, 2))


@pytest.mark.parametrize("shift", [0, SHIFT])
def test_gradients_are_zero_outside_the_window(shift):
    """Shifted windows are cut at the map's edges: no pixel sees one across an edge."""
    x = jnp.asarray(random(0, 1, HEIGHT, WIDTH, 2), jnp.float32)
    jacobian = jax.jit(jax.jacrev(lambda x: shifted_attention(x, shift).sum(axis=(0, 3))))(x)
    influence = np.abs(jacobian).max(axis=(2, 5)).reshape(HEIGHT * WIDTH, HEIGHT * WIDTH)
    row, col = ((np.arange(n) - shift) // WINDOW for n in (HEIGHT, WIDTH))
    window = (10 * row[:, None] + col).ravel()
    together = window[:, None] == window
    assert influence[together].min() > 1e-6
    assert influence[~together].max() < 1e-30  # exp(-100) is no more than that


def test_released_regions_part_left_from_right_in_the_bottom_windows():
    regions = released_regions(HEIGHT, WIDTH, WINDOW, SHIFT)
    across, down = WIDTH // WINDOW, HEIGHT // WINDOW
    assert regions.shape == (down * across, WINDOW**2)
    for n, i, j in np.ndindex(down * across, WINDOW**2, WINDOW**2):
        is_bottom = n // across == down - 1
        sides_differ = (i % WINDOW < WINDOW // 2) != (j % WINDOW < WINDOW // 2)
        assert (regions[n, i] != regions[n, j]) == (is_bottom and sides_differ)


def test_attend_is_softmax_attention():
    images, windows, heads, tokens, depth = 3, 2, 2, 5, 4
    query, key, value = (random(i, images * windows, heads, tokens, depth) for i in range(3))
    bias, regions = random(3, heads, tokens, tokens), np.array([[0, 0, 1, 1, 2], [0, 1, 0, 1, 0]])
    with jax.enable_x64(True):
        out = jax.jit(partial(attend, regions=regions))(query, key, value, bias)
    for n, head in np.ndindex(images * windows, heads):
        region = regions[n % windows]
        mask = np.where(region[:, None] == region, 0, -100)
        expected = softmax_attention(
            query[n, head], key[n, head], value[n, head], bias[head] + mask
        )
        np.testing.assert_allclose(out[n, head], expected, rtol=1e-12)


def test_softmax_is_not_in_half_precision():
    """Logits of 512 and 513 differ in float32 only, and exp(513) overflows it."""
    query = jnp.full((1, 1, 1, 1), 1.0, jnp.bfloat16)
    key = jnp.array([512.0, 512.0]).reshape(1, 1, 2, 1).astype(jnp.bfloat16)
    value = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1).astype(jnp.bfloat16)
    out = attend(query, key, value, bias=jnp.array([0.0, 1.0]).reshape(1, 1, 2))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0, 0, 0]) == pytest.approx(1 / (1 + np.exp(-1)), rel=0.01)
