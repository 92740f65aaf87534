"""The estimator: ATD, a transformer with an adaptive token dictionary.

Zhang et al., CVPR 2024, arXiv 2401.08209. Every layer runs three attentions side by side: within
shifted windows, from pixels to a dictionary of learned tokens, and among pixels that picked the
same token. The last one sorts the pixels of the whole image, so the result depends on the tile
given, and a tie broken differently moves groups of pixels: compare implementations in float64.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from flax.linen.dtypes import promote_dtype
from jax import lax
from jaxtyping import Array, Float, Int

from upsr_jax.models.attention import (
    WindowAttention,
    attend,
    swin_regions,
    window_partition,
    window_reverse,
)
from upsr_jax.models.layers import conv, uniform
from upsr_jax.models.remat import rematerialize
from upsr_jax.ops import pixel_shuffle

truncated_normal = nn.initializers.truncated_normal(0.02)
dense = partial(nn.Dense, kernel_init=truncated_normal)
# Norms have no dtype: they compute in at least float32. One-pass variance would lose digits.
layer_norm = partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)


def l2_normalize(x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Divide by the norm of the last axis, with a finite gradient where that is zero."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))


def _padded_taps(
    x: Float[Array, "b h w c"], size: int
) -> tuple[Float[Array, "b h2 w2 c"], list[tuple[int, int]]]:
    """Return x padded, in at least float32, and the offset of each element of a kernel."""
    pad = (size // 2, size // 2)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    taps = [(row, col) for row in range(size) for col in range(size)]
    return jnp.pad(x, ((0, 0), pad, pad, (0, 0))), taps


@jax.custom_vjp
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]
) -> Float[Array, "b h w c"]:
    """Convolve each channel with its own k x k kernel (k odd), zero padded.

    A sum of shifted products: XLA fuses it to one loop, 20 times faster on a CPU than its grouped
    convolution. Products are summed in at least float32.
    """
    height, width = x.shape[1:3]
    padded, taps = _padded_taps(x, len(kernel))
    out = jnp.zeros(x.shape, padded.dtype)
    for row, col in taps:
        window = padded[:, row : row + height, col : col + width]
        out += window * kernel[row, col][None, None]
    return out.astype(x.dtype)


def _depthwise_conv_fwd(x, kernel):
    return depthwise_conv(x, kernel), (x, kernel)


def _depthwise_conv_bwd(residuals, gradient):
    x, kernel = residuals
    padded, taps = _padded_taps(x, len(kernel))

    # A loop over the taps: unrolled, XLA's reductions take four times as long to run.
    def kernel_gradient(tap):
        window = lax.dynamic_slice(padded, (0, tap[0], tap[1], 0), x.shape)
        return jnp.sum(window * gradient, axis=(0, 1, 2)).astype(kernel.dtype)

    return (
        depthwise_conv(gradient, kernel[::-1, ::-1]),
        lax.map(kernel_gradient, jnp.array(taps)).reshape(kernel.shape),
    )


depthwise_conv.defvjp(_depthwise_conv_fwd, _depthwise_conv_bwd)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with its kernel and bias."""

    kernel_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        init = uniform(self.kernel_size**2)
        kernel = self.param("kernel", init, (self.kernel_size, self.kernel_size, 1, channels))
        bias = self.param("bias", init, (channels,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return depthwise_conv(x, kernel) + bias[None, None, None]


class ConvFFN(nn.Module):
    """An MLP whose hidden features also see their neighbours, through a depthwise convolution."""

    hidden: int
    kernel_size: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        u = nn.gelu(dense(self.hidden, dtype=self.dtype, name="fc1")(x), approximate=False)
        neighbours = DepthwiseConv(self.kernel_size, self.dtype, name="depthwise")(u)
        u = u + nn.gelu(neighbours, approximate=False)
        return dense(x.shape[-1], dtype=self.dtype, name="fc2")(u)


class TokenAttention(nn.Module):
    """Cross-attention from pixels to the dictionary's tokens (ATD, section 3.2).

    Returns the result and the similarities (softmax over the tokens, in at least float32).
    """

    reduced_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], tokens: Float[Array, "b m c"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b n m"]]:
        num_tokens, channels = tokens.shape[1:]
        scale = self.param("scale", nn.initializers.constant(0.5), (num_tokens,))
        query = dense(self.reduced_dim, dtype=self.dtype, name="query")(x)
        key = dense(self.reduced_dim, dtype=self.dtype, name="key")(tokens)
        value = dense(channels, dtype=self.dtype, name="value")(tokens)
        at_least_float32 = jnp.promote_types(query.dtype, jnp.float32)
        query, key = (l2_normalize(u.astype(at_least_float32)) for u in (query, key))
        sharpness = 1 + jnp.clip(scale, 0, 1) * math.log(num_tokens)
        logits = jnp.einsum("bnd,bmd->bnm", query, key * sharpness[None, :, None])
        similarity = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("bnm,bmc->bnc", similarity.astype(value.dtype), value), similarity


def sorting_order(values: Int[Array, "b n"], limit: int) -> Int[Array, "b n"]:
    """Return the order that sorts each row, equal values as they stand; they lie in 0..limit-1."""
    length = values.shape[1]
    if limit * length >= 2**31:
        return jnp.argsort(values, axis=-1, stable=True)
    # Numbers that hold value and place: one array sorts three to five times as fast as two.
    places = jnp.arange(length, dtype=jnp.int32)[None]
    return lax.sort(values.astype(jnp.int32) * length + places, is_stable=False) % length


class CategoryAttention(nn.Module):
    """Self-attention among pixels of like category, wherever they are (ATD, section 3.3).

    Pixels sorted by category are cut into groups of equal size, so shapes stay static.
    """

    num_heads: int
    category_size: int
    num_tokens: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, qkv: Float[Array, "b n k"], category: Int[Array, "b n"]
    ) -> Float[Array, "b n c"]:
        batch, length = category.shape
        size = min(self.category_size, length)
        logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(10)), (1, 1))
        order = sorting_order(category, self.num_tokens)
        ordered = jax.vmap(lambda qkv, order: qkv[order])(qkv, order)
        ordered = jnp.pad(ordered, ((0, 0), (0, -length % size), (0, 0)), mode="symmetric")
        query, key, value = rearrange(
            ordered,
            "b (groups g) (three heads d) -> three (b groups) heads g d",
            g=size,
            three=3,
            heads=self.num_heads,
        )
        scale = jnp.exp(jnp.minimum(logit_scale, math.log(100))).astype(query.dtype)
        out = attend(query * scale[None, None], key, value)
        ordered = rearrange(out, "(b groups) heads g d -> b (groups g) (heads d)", b=batch)
        # By the inverse permutation, as jax2onnx converts no batch of scatters.
        places = sorting_order(order, length)
        out = jax.vmap(lambda x, places: x.at[places].get(unique_indices=True))(
            ordered[:, :length], places
        )
        return dense(out.shape[-1], dtype=self.dtype, name="proj")(out)


class Layer(nn.Module):
    """Three attentions side by side and a ConvFFN; then the image refines the dictionary.

    `tokens` come L2-normalized. The group's last layer has `refine` False and gives them back.
    """

    num_heads: int
    window_size: int
    category_size: int
    reduced_dim: int
    convffn_kernel_size: int
    mlp_ratio: int
    shift: int
    refine: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], tokens: Float[Array, "b m c"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b m c"]]:
        _, height, _, channels = x.shape
        u = layer_norm(name="norm_attn")(x)
        qkv = dense(3 * channels, dtype=self.dtype, name="qkv")(u)

        from_tokens, similarity = TokenAttention(
            self.reduced_dim, self.dtype, name="token_attention"
        )(rearrange(u, "b h w c -> b (h w) c"), tokens)
        from_category = CategoryAttention(
            self.num_heads,
            self.category_size,
            tokens.shape[1],
            self.dtype,
            name="category_attention",
        )(rearrange(qkv, "b h w k -> b (h w) k"), jnp.argmax(similarity, axis=-1))
        from_window = self.shifted_window_attention(qkv)

        mixed = rearrange(from_tokens + from_category, "b (h w) c -> b h w c", h=height)
        x = x + (from_window + mixed) / math.sqrt(3)
        u = layer_norm(name="norm_ffn")(x)
        x = x + ConvFFN(
            self.mlp_ratio * channels, self.convffn_kernel_size, self.dtype, name="ffn"
        )(u)
        return x, self.refined(tokens, similarity, x) if self.refine else tokens

    def shifted_window_attention(self, qkv: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
        """Attend within windows of the map rolled by `shift`."""
        _, height, width, _ = qkv.shape
        regions = None
        if self.shift:
            qkv = jnp.roll(qkv, (-self.shift, -self.shift), axis=(1, 2))
            regions = swin_regions(height, width, self.window_size, self.shift)
        out = WindowAttention(
            self.num_heads,
            self.window_size,
            truncated_normal,
            nn.initializers.zeros_init(),
            self.dtype,
            name="window_attention",
        )(window_partition(qkv, self.window_size), regions)
        out = window_reverse(out, self.window_size, height, width)
        return jnp.roll(out, (self.shift, self.shift), axis=(1, 2)) if self.shift else out

    def refined(
        self,
        tokens: Float[Array, "b m c"],
        similarity: Float[Array, "b n m"],
        x: Float[Array, "b h w c"],
    ) -> Float[Array, "b m c"]:
        """Blend each token with the mean of the pixels that are like it."""
        sigma = self.param("sigma", nn.initializers.zeros_init(), (tokens.shape[1], 1))
        # An instance norm: every token's similarities over the image.
        normalized = layer_norm(reduction_axes=1, name="norm_tokens")(similarity)
        weights = jax.nn.softmax(normalized, axis=1)
        mean = jnp.einsum("bnm,bnc->bmc", weights, rearrange(x, "b h w c -> b (h w) c"))
        keep = nn.sigmoid(sigma)[None]
        return keep * tokens + (1 - keep) * mean


class Group(nn.Module):
    """Layers that share a dictionary, a convolution and a norm, around a residual connection."""

    depth: int
    num_heads: int
    window_size: int
    category_size: int
    num_tokens: int
    reduced_dim: int
    convffn_kernel_size: int
    mlp_ratio: int
    dtype: Any = None
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, _, _, channels = x.shape
        dictionary = self.param(
            "token_dictionary", nn.initializers.normal(1.0), (self.num_tokens, channels)
        )
        tokens = jnp.broadcast_to(dictionary[None], (batch, *dictionary.shape))
        u = x
        for i in range(self.depth):
            u, tokens = rematerialize(Layer, self.remat)(
                self.num_heads,
                self.window_size,
                self.category_size,
                self.reduced_dim,
                self.convffn_kernel_size,
                self.mlp_ratio,
                shift=self.window_size // 2 if i % 2 else 0,
                refine=i < self.depth - 1,
                dtype=self.dtype,
                name=f"layer_{i}",
            )(u, l2_normalize(tokens))
        u = conv(u, channels, "conv", dtype=self.dtype)
        return layer_norm(name="norm")(u) + x


class ATD(nn.Module):
    """Upsample unit images x4: [b, h, w, 3] to [b, 4h, 4w, 3], any h and w.

    `dtype` is that of matrix products (None: the promoted dtype of inputs and parameters); norms,
    softmax, the residual stream and the output are float32 at least. The output is not clipped.
    `remat` is what training computes twice to save memory, see `models.remat`.
    """

    embed_dim: int = 96
    depths: Sequence[int] = (6, 6, 6, 6)
    num_heads: int = 4
    window_size: int = 16
    category_size: int = 128
    num_tokens: int = 64
    reduced_dim: int = 8
    convffn_kernel_size: int = 7
    mlp_ratio: int = 1
    dtype: Any = None
    remat: str = "none"

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 4*h 4*w 3"]:
        _, height, width, _ = images.shape
        margins = ((0, 0), (0, -height % self.window_size), (0, -width % self.window_size), (0, 0))
        x = jnp.pad(2 * images - 1, margins, mode="symmetric")
        features = conv(x, self.embed_dim, "conv_first", dtype=self.dtype)
        u = layer_norm(name="patch_norm")(features)
        for i, depth in enumerate(self.depths):
            u = Group(
                depth,
                self.num_heads,
                self.window_size,
                self.category_size,
                self.num_tokens,
                self.reduced_dim,
                self.convffn_kernel_size,
                self.mlp_ratio,
                self.dtype,
                self.remat,
                name=f"group_{i}",
            )(u)
        u = conv(layer_norm(name="norm")(u), self.embed_dim, "conv_after_body", dtype=self.dtype)
        # Without dtype: the image's last layer is not rounded to less than float32.
        out = pixel_shuffle(conv(u + features, 48, "upsample"), 4)
        return (out / 2 + 0.5)[:, : 4 * height, : 4 * width]
