"""The denoiser: a U-Net of residual and Swin blocks at low resolution, with an upsampling head.

UPSR (arXiv 2503.18512) takes it from ResShift (arXiv 2307.12348); Swin blocks are those of
arXiv 2103.14030 with group norms. The state and the condition come pixel-unshuffled.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce, repeat
from jaxtyping import Array, Float, Int

from upsr_jax.models.attention import (
    SHIFT_REGIONS,
    WindowAttention,
    window_partition,
    window_reverse,
)
from upsr_jax.models.layers import UpsampledConv, conv, dense, uniform
from upsr_jax.models.remat import rematerialize
from upsr_jax.ops import pixel_shuffle


def group_norm(x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
    """Normalize over 32 groups of channels, in at least float32; call it in a compact method."""
    # One-pass variance (E[x²] - E[x]²) loses digits that parity with the released weights needs.
    return nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False, name=name)(x)


def timestep_embedding(t: Int[Array, "b"], width: int, dtype: Any) -> Float[Array, "b width"]:
    """Embed timesteps as cosines, then sines, of width/2 frequencies from 1 down to 1/10000."""
    half = width // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / half)
    angles = t[:, None].astype(dtype) * jnp.asarray(frequencies, dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@jax.custom_vjp
def clip_image(image: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clip signed images to [-1, 1], so that saturated pixels still learn.

    Where a pixel is outside, its gradient passes only if a step against it leads back inside:
    passing always, a network is pushed ever further out; never, a pixel that is out stays there.
    """
    return jnp.clip(image, -1, 1)


def _clip_image_fwd(image: Array) -> tuple[Array, Array]:
    return clip_image(image), image


def _clip_image_bwd(image: Array, gradient: Array) -> tuple[Array]:
    outwards = (jnp.abs(image) > 1) & (image * gradient < 0)
    return (jnp.where(outwards, 0, gradient),)


clip_image.defvjp(_clip_image_fwd, _clip_image_bwd)


def tint(
    image: Float[Array, "b H W 3"], bicubic: Float[Array, "b H W 3"]
) -> Float[Array, "b H W 3"]:
    """Give the differences of means over 68x68 pixels, repeated at full resolution."""
    means = reduce(image - bicubic, "b (h i) (w j) c -> b h w c", "mean", i=4, j=4)
    # Mirrored at its ends, the window counts every pixel alike: the whole picture's mean is exact.
    means = jnp.pad(means, ((0, 0), (8, 8), (8, 8), (0, 0)), mode="symmetric")
    means = nn.avg_pool(nn.avg_pool(means, window_shape=(17, 1)), window_shape=(1, 17))
    return repeat(means, "b h w c -> b (h i) (w j) c", i=4, j=4)


def keep_colours(
    image: Float[Array, "b H W 3"], bicubic: Float[Array, "b H W 3"]
) -> Float[Array, "b H W 3"]:
    """Clip signed images and shift them smoothly, their means over 68x68 pixels to the bicubic's.

    Perceptual losses hardly see a tint, and degradations leave the means as they are. The result
    leaves [-1, 1] by as much as clipping took off the means.
    """
    bicubic = jnp.clip(bicubic, -1, 1)
    # Shifted before the clip, too: as the loss sees no tint of the network's, it may drift, and
    # must not decide what is clipped.
    image = clip_image(image - tint(image, bicubic))
    return image - tint(image, bicubic)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual connection, modulated by the time embedding."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]
    ) -> Float[Array, "b h w f"]:
        u = conv(nn.silu(group_norm(x, "norm_in")), self.features, "conv_in", dtype=self.dtype)
        modulation = dense(nn.silu(embedding), 2 * self.features, "time", dtype=self.dtype)
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        u = group_norm(u, "norm_out") * (1 + scale) + shift
        u = conv(nn.silu(u), self.features, "conv_out", zero=True, dtype=self.dtype)
        if x.shape[-1] != self.features:
            x = dense(x, self.features, "skip", dtype=self.dtype)
        return u + x


class SwinBlock(nn.Module):
    """Window attention and an MLP, each around a residual connection, with group norms."""

    num_heads: int
    window_size: int
    shift: int
    mlp_ratio: int
    shift_mask: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, height, width, channels = x.shape
        u = group_norm(x, "norm_attention")
        regions = None
        if self.shift:
            u = jnp.roll(u, (-self.shift, -self.shift), axis=(1, 2))
            regions = SHIFT_REGIONS[self.shift_mask](height, width, self.window_size, self.shift)
        qkv = dense(window_partition(u, self.window_size), 3 * channels, "qkv", dtype=self.dtype)
        init = uniform(channels)
        u = WindowAttention(
            self.num_heads, self.window_size, init, init, self.dtype, name="attention"
        )(qkv, regions)
        u = window_reverse(u, self.window_size, height, width)
        if self.shift:
            u = jnp.roll(u, (self.shift, self.shift), axis=(1, 2))
        x = x + u
        u = group_norm(x, "norm_mlp")
        u = dense(u, self.mlp_ratio * channels, "mlp_in", dtype=self.dtype)
        u = dense(nn.gelu(u, approximate=False), channels, "mlp_out", dtype=self.dtype)
        return x + u


class SwinLayer(nn.Module):
    """A 1x1 convolution to `embed_dim`, Swin blocks, and one back; no residual around it.

    Every other block is shifted by half a window, unless `shifted` is False.
    """

    depth: int
    embed_dim: int
    head_dim: int
    window_size: int
    mlp_ratio: int
    shift_mask: str
    shifted: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        u = dense(x, self.embed_dim, "embed", dtype=self.dtype)
        for i in range(self.depth):
            u = SwinBlock(
                self.embed_dim // self.head_dim,
                self.window_size,
                self.window_size // 2 if self.shifted and i % 2 else 0,
                self.mlp_ratio,
                self.shift_mask,
                self.dtype,
                name=f"block_{i}",
            )(u)
        return dense(u, x.shape[-1], "unembed", dtype=self.dtype)


class SwinUNet(nn.Module):
    """Predict x_0 from a noisy state: f(x_t, t, condition).

    Attributes:
      width: channels at the first level; level l has width·multipliers[l].
      multipliers: one per level; each level halves the resolution of the one before.
      num_res_blocks: residual blocks per level on the way down (one more on the way up).
      swin_depth, swin_embed_dim, swin_head_dim, mlp_ratio: the Swin layer of every level.
      window_size: side of an attention window.
      head_width: channels of the head that upsamples x4.
      nominal_size: side of the low-resolution training patch. Levels whose nominal side is no
        larger than the window have no shifted blocks, whatever the image's size.
      shift_mask: "released" for parity with the released weights, "swin" for the textbook mask.
      residual: add the condition's estimate to the output, so that the network learns only what
        the estimate lacks, and keep the bicubic's colours (small networks); the released weights
        do neither.
      dtype: of the arithmetic; None takes that of parameters and inputs. Norms, softmax and the
        output stay at least float32.
      remat: what training computes twice to save memory, see `remat.rematerialize`.
    """

    width: int
    multipliers: Sequence[int]
    num_res_blocks: Sequence[int]
    swin_depth: int
    swin_embed_dim: int
    swin_head_dim: int
    mlp_ratio: int
    window_size: int
    head_width: int
    nominal_size: int
    shift_mask: str
    residual: bool
    dtype: Any = None
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        x_t: Float[Array, "b h w 48"],
        t: Int[Array, "b"],
        condition: Float[Array, "b h w 96"],
    ) -> Float[Array, "b 4*h 4*w 3"]:
        """Denoise.

        Args:
          x_t: scaled state (`diffusion.scale_input`), pixel-unshuffled.
          t: 0-based timesteps.
          condition: pixel-unshuffled estimate and bicubic upsampling, signed.

        Returns:
          The prediction of x_0, signed, which may leave [-1, 1], at least float32.

        Raises:
          ValueError: height or width is no multiple of window_size·2^(levels - 1).
        """
        levels = len(self.multipliers)
        self._check_size(*x_t.shape[1:3])
        out_dtype = jnp.promote_types(x_t.dtype, jnp.float32)
        layer = partial(conv, dtype=self.dtype)

        def res_block(level: int, name: str) -> ResBlock:
            block = rematerialize(ResBlock, self.remat)
            return block(self.width * self.multipliers[level], self.dtype, name=name)

        def swin_layer(level: int, name: str) -> SwinLayer:
            return rematerialize(SwinLayer, self.remat)(
                self.swin_depth,
                self.swin_embed_dim,
                self.swin_head_dim,
                self.window_size,
                self.mlp_ratio,
                self.shift_mask,
                shifted=self.nominal_size // 2**level > self.window_size,
                dtype=self.dtype,
                name=name,
            )

        embedding = timestep_embedding(t, self.width, out_dtype)
        embedding = dense(embedding, 4 * self.width, "time_0", dtype=self.dtype)
        embedding = dense(nn.silu(embedding), 4 * self.width, "time_1", dtype=self.dtype)

        u = layer(jnp.concatenate([x_t, condition], axis=-1), self.width, "stem")
        skips = [u]
        for level in range(levels):
            for i in range(self.num_res_blocks[level]):
                u = res_block(level, f"down_{level}_res_{i}")(u, embedding)
                if i == 0:
                    u = swin_layer(level, f"down_{level}_swin")(u)
                skips.append(u)
            if level < levels - 1:
                u = layer(u, u.shape[-1], f"down_{level}_downsample", stride=2)
                skips.append(u)

        u = res_block(levels - 1, "middle_res_0")(u, embedding)
        u = swin_layer(levels - 1, "middle_swin")(u)
        u = res_block(levels - 1, "middle_res_1")(u, embedding)

        for level in reversed(range(levels)):
            for i in range(self.num_res_blocks[level] + 1):
                u = jnp.concatenate([u, skips.pop()], axis=-1)
                u = res_block(level, f"up_{level}_res_{i}")(u, embedding)
                if i == 0:
                    u = swin_layer(level, f"up_{level}_swin")(u)
            if level:
                u = UpsampledConv(u.shape[-1], self.dtype, name=f"up_{level}_upsample")(u)

        u = rematerialize(SwinUNet.head, self.remat)(self, u).astype(out_dtype)
        if self.residual:
            estimate, bicubic = map(pixel_shuffle, jnp.split(condition.astype(out_dtype), 2, -1))
            u = keep_colours(u + estimate, bicubic)
        return u

    def head(self, u: Float[Array, "b h w c"]) -> Float[Array, "b 4*h 4*w 3"]:
        """Upsample features x4 to an image."""
        layer = partial(conv, dtype=self.dtype)
        u = nn.leaky_relu(layer(u, self.head_width, "head_in"), negative_slope=0.01)
        for i in (0, 1):
            u = UpsampledConv(self.head_width, self.dtype, name=f"head_up_{i}")(u)
            u = nn.leaky_relu(u, negative_slope=0.2)
        u = nn.leaky_relu(layer(u, self.head_width, "head_hr"), negative_slope=0.2)
        # Without dtype: the image's last layer is not rounded to less than float32.
        return conv(u, 3, "head_out")

    def _check_size(self, height: int, width: int) -> None:
        multiple = self.window_size * 2 ** (len(self.multipliers) - 1)
        if height % multiple or width % multiple:
            raise ValueError(
                f"SwinUNet takes sides that are multiples of {multiple} "
                f"(window {self.window_size}, {len(self.multipliers)} levels), "
                f"not {height}x{width}: pad the image first"
            )
