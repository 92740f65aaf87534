"""Window attention: partition, relative-position bias and masks (Swin, arXiv 2103.14030).

A window is a square of `window x window` tokens. Shifted attention rolls the map up and left by
`shift`, so that a window holds tokens that were neighbours across a window border.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.typing import Initializer
from jaxtyping import Array, Float

MASKED = -100.0  # added to the logits of pairs that must not see each other


def window_partition(x: Float[Array, "b h w c"], window: int) -> Float[Array, "n t c"]:
    """Cut maps into windows, row by row: n = b·(h/window)·(w/window), t = window²."""
    return rearrange(x, "b (nh p) (nw q) c -> (b nh nw) (p q) c", p=window, q=window)


def window_reverse(
    windows: Float[Array, "n t c"], window: int, height: int, width: int
) -> Float[Array, "b h w c"]:
    """Put windows back in place; the inverse of `window_partition`."""
    return rearrange(
        windows,
        "(b nh nw) (p q) c -> b (nh p) (nw q) c",
        nh=height // window,
        nw=width // window,
        p=window,
    )


@functools.lru_cache
def relative_position_index(window: int) -> np.ndarray:
    """Return the bias table's row for each pair of tokens of a window, int64 [t, t].

    Row (Δrow + window - 1)·(2·window - 1) + Δcol + window - 1 (Swin, eq. 4).
    """
    row, col = np.divmod(np.arange(window**2), window)
    delta_row = row[:, None] - row[None, :] + window - 1
    delta_col = col[:, None] - col[None, :] + window - 1
    return delta_row * (2 * window - 1) + delta_col


@functools.lru_cache
def swin_regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Number the regions of a map rolled by `shift`, int32 [windows, t] (Swin, section 3.2).

    Tokens of one window see each other only where their numbers agree.
    """

    def part(length: int) -> np.ndarray:
        position = np.arange(length)
        return (position >= length - window).astype(np.int32) + (position >= length - shift)

    region = 3 * part(height)[:, None] + part(width)[None, :]
    return rearrange(region, "(nh p) (nw q) -> (nh nw) (p q)", p=window, q=window)


@functools.lru_cache
def released_regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Number the regions as the released UPSR weights were trained, int32 [windows, t].

    They separate left from right columns in the bottom row of windows and nothing else. That is
    not Swin's rule, but parity with those weights needs it.
    """
    region = np.zeros((height // window, width // window, window**2), np.int32)
    region[-1] = np.arange(window**2) % window >= window - shift
    return rearrange(region, "nh nw t -> (nh nw) t")


SHIFT_REGIONS: dict[str, Callable[[int, int, int, int], np.ndarray]] = {
    "released": released_regions,
    "swin": swin_regions,
}


def relative_position_bias(
    table: Float[Array, "r heads"], window: int
) -> Float[Array, "heads t t"]:
    """Look up the bias of every pair of tokens in a learned table of (2·window - 1)² rows."""
    index = relative_position_index(window).astype(np.int32)  # as JAX's own, with or without x64
    return rearrange(table[index], "t s heads -> heads t s")


def attend(
    query: Float[Array, "n heads t d"],
    key: Float[Array, "n heads s d"],
    value: Float[Array, "n heads s d"],
    bias: Float[Array, "heads t s"] | None = None,
    regions: np.ndarray | None = None,
) -> Float[Array, "n heads t d"]:
    """Compute softmax(query·keyᵀ + bias + mask)·value, the softmax in at least float32.

    Queries come scaled. `regions` [windows, t] repeats over the n / windows images; the mask is
    made of it here, on the device: as a constant it would take windows·t² numbers.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("nhtd,nhsd->nhts", query, key, preferred_element_type=dtype)
    if bias is not None:
        logits += bias.astype(dtype)[None]
    if regions is not None:
        apart = regions[:, :, None] != jnp.asarray(regions)[:, None, :]
        mask = jnp.where(apart, jnp.asarray(MASKED, dtype), 0)
        by_image = rearrange(logits, "(b m) h t s -> b m h t s", m=regions.shape[0])
        logits = rearrange(by_image + mask[None, :, None], "b m h t s -> (b m) h t s")
    # Softmax with its division moved behind the product with the values, which are far fewer.
    peak = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - peak)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum(
        "nhts,nhsd->nhtd", weights.astype(value.dtype), value, preferred_element_type=dtype
    )
    return (out / total).astype(value.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative-position bias and projection.

    It takes q, k and v of all tokens, [n, t, 3·c], and gives [n, t, c]; `regions` as in `attend`.
    """

    num_heads: int
    window_size: int
    proj_kernel_init: Initializer
    proj_bias_init: Initializer
    dtype: Any = None

    @nn.compact
    def __call__(
        self, qkv: Float[Array, "n t k"], regions: np.ndarray | None = None
    ) -> Float[Array, "n t c"]:
        query, key, value = rearrange(
            qkv, "n t (three heads d) -> three n heads t d", three=3, heads=self.num_heads
        )
        table = self.param(
            "relative_position_bias",
            nn.initializers.truncated_normal(0.02),
            ((2 * self.window_size - 1) ** 2, self.num_heads),
        )
        bias = relative_position_bias(table, self.window_size)
        out = attend(query * query.shape[-1] ** -0.5, key, value, bias, regions)
        out = rearrange(out, "n heads t d -> n t (heads d)")
        return nn.Dense(
            out.shape[-1],
            kernel_init=self.proj_kernel_init,
            bias_init=self.proj_bias_init,
            dtype=self.dtype,
            name="proj",
        )(out)
