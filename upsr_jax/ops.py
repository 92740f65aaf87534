"""Operations on NHWC images: upsampling and pixel shuffling with PyTorch's numbers, and canvases.

A canvas is the common shape of a batch of images of different sizes, each at its top left. So that
metrics compile for few shapes, they take the images' true `sizes`, (height, width) each, and give
what they give for the image alone; the rest of the canvas may hold anything. Without `sizes`, the
images are as large as the canvas.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Sizes = Int[Array, "b 2"]

# Cubic convolution (Keys 1981) with a = -0.75 at x4: output 4i + p is centred (2p - 3) / 8 pixels
# from input i, so phases p = 0, 1 read inputs i-2..i+1 and p = 2, 3 read i-1..i+2. Exact in binary.
_CUBIC_WEIGHTS = (
    (-0.06591796875, 0.42626953125, 0.74951171875, -0.10986328125),
    (-0.01025390625, 0.11474609375, 0.96728515625, -0.07177734375),
    (-0.07177734375, 0.96728515625, 0.11474609375, -0.01025390625),
    (-0.10986328125, 0.74951171875, 0.42626953125, -0.06591796875),
)


def bicubic_upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 4*h 4*w c"]:
    """Upsample x4 by cubic convolution with half-pixel centres and clamped edges.

    The result is float32 at least, and overshoots the input's range at edges. It is not
    `jax.image.resize`, whose cubic has a = -0.5.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x = _upsample_axis(x, 1, "phase b h w c -> b (h phase) w c")
    return _upsample_axis(x, 2, "phase b h w c -> b h (w phase) c")


def _upsample_axis(x: Float[Array, "b h w c"], axis: int, interleave: str) -> Array:
    size = x.shape[axis]
    # Clamped by indices: jax2onnx converts jnp.pad's mode "edge" wrongly.
    padded = jnp.take(x, np.clip(np.arange(-2, size + 2), 0, size - 1), axis=axis)
    taps = [lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(5)]
    # Sums, not a convolution or matrix product, which a GPU would round to TF32.
    phases = [
        sum(weight * tap for weight, tap in zip(weights, taps[phase // 2 :], strict=False))
        for phase, weights in enumerate(_CUBIC_WEIGHTS)
    ]
    return rearrange(jnp.stack(phases), interleave)


def pixel_unshuffle(x: Float[Array, "b H W c"], factor: int = 4) -> Float[Array, "b h w d"]:
    """Move every `factor` x `factor` block of pixels into the channels, in PyTorch's order.

    Channel `c` at `(row, column)` of a block becomes `c * factor**2 + row * factor + column`.
    Raises ValueError if a side is not a multiple of `factor`.
    """
    height, width = x.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(
            f"pixel_unshuffle by {factor} got an image of {height}x{width}: "
            f"pad its sides to multiples of {factor}"
        )
    return rearrange(x, "b (h i) (w j) c -> b h w (c i j)", i=factor, j=factor)


def pixel_shuffle(x: Float[Array, "b h w d"], factor: int = 4) -> Float[Array, "b H W c"]:
    """Move channels back into blocks of pixels: the inverse of `pixel_unshuffle`.

    Raises ValueError if the number of channels is not a multiple of `factor` squared.
    """
    channels = x.shape[-1]
    if channels % factor**2:
        raise ValueError(
            f"pixel_shuffle by {factor} got {channels} channels: give it a multiple of {factor**2}"
        )
    return rearrange(x, "b h w (c i j) -> b (h i) (w j) c", i=factor, j=factor)


def inside(sizes: Sizes, height: int, width: int) -> Bool[Array, "b h w"]:
    """Tell which pixels of a canvas belong to the images."""
    rows = jnp.arange(height)[None] < sizes[:, :1]
    columns = jnp.arange(width)[None] < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def blank_outside(x: Float[Array, "b h w c"], sizes: Sizes | None) -> Float[Array, "b h w c"]:
    """Set all but the images' pixels to zero, as a convolution pads an image."""
    return x if sizes is None else jnp.where(inside(sizes, *x.shape[1:3])[..., None], x, 0)


def mean_inside(x: Float[Array, "b h w"], sizes: Sizes | None) -> Float[Array, " b"]:
    """Average over each image's own pixels; NaN if it has none."""
    if sizes is None:
        return jnp.mean(x, axis=(1, 2))
    total = jnp.sum(jnp.where(inside(sizes, *x.shape[1:]), x, 0), axis=(1, 2))
    return total / jnp.prod(sizes, axis=1).astype(x.dtype)


def window_count(sizes: Sizes | None, kernel: int, stride: int, padding: int) -> Sizes | None:
    """Count a window's places on each axis of the padded images: the sizes of a layer's output."""
    if sizes is None:
        return None
    return jnp.maximum((sizes + 2 * padding - kernel) // stride + 1, 0)
