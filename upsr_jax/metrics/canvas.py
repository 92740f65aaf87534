"""Images of different sizes in one batch: each fills the top left of a common canvas.

So that metrics compile for few shapes, they take the images' true `sizes`, (height, width) each,
and give what they give for the image alone; the rest of the canvas may hold anything. Without
`sizes`, the images are as large as the canvas.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Sizes = Int[Array, "b 2"]


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
