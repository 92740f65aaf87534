"""JPEG compression simulated on a device: what the loss of a codec does, without its bit stream.

ITU-T T.81, with the tables of its Annex K. On a host `degradation.random_jpeg` uses the real codec.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jax import Array, lax
from jaxtyping import Float

# Transposed, as in the simulation that the released model was trained with
LUMA_TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
).T
CHROMA_TABLE = np.full((8, 8), 99)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]

# JFIF: RGB to Y, Cb - 128, Cr - 128
YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
RGB = np.array(
    [
        [1.0, 0.0, 1.402],
        [1.0, -0.344136, -0.714136],
        [1.0, 1.772, 0.0],
    ]
)

_frequency, _position = np.mgrid[:8, :8]
DCT = np.cos((2 * _position + 1) * _frequency * np.pi / 16) / 2  # orthonormal
DCT[0] /= np.sqrt(2)


def simulate_jpeg(
    image: Float[Array, "b h w 3"], quality: Float[Array, " b"]
) -> Float[Array, "b h w 3"]:
    """Compress and decompress unit images of any size at a quality above 0 and below 100, 4:2:0."""
    height, width = image.shape[1:3]
    padded = jnp.pad(image, ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0)))
    ycbcr = _contract("b h w c, k c -> b h w k", padded * 255, YCBCR)
    luma, chroma = ycbcr[..., :1] - 128, ycbcr[..., 1:]
    factor = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
    luma = _requantize(luma, LUMA_TABLE, factor)
    chroma = reduce(chroma, "b (h y) (w x) c -> b h w c", "mean", y=2, x=2)
    chroma = _requantize(chroma, CHROMA_TABLE, factor)
    chroma = repeat(chroma, "b h w c -> b (h y) (w x) c", y=2, x=2)
    ycbcr = jnp.concatenate([luma + 128, chroma], axis=-1)
    rgb = _contract("b h w k, c k -> b h w c", ycbcr, RGB)
    return jnp.clip(rgb / 255, 0, 1)[:, :height, :width]


def _requantize(
    plane: Float[Array, "b h w c"], table: np.ndarray, factor: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Round the cosine coefficients of 8x8 blocks to multiples of table * factor, half to even."""
    blocks = rearrange(plane, "b (h y) (w x) c -> b h w c y x", y=8, x=8)
    coefficients = _contract("... y x, u y, v x -> ... u v", blocks, DCT, DCT)
    step = rearrange(factor, "b -> b 1 1 1 1 1") * rearrange(table, "u v -> 1 1 1 1 u v")
    coefficients = jnp.round(coefficients / step) * step
    blocks = _contract("... u v, u y, v x -> ... y x", coefficients, DCT, DCT)
    return rearrange(blocks, "b h w c y x -> b (h y) (w x) c")


def _contract(pattern: str, image: Array, *matrices: np.ndarray) -> Array:
    factors = [jnp.asarray(matrix, image.dtype) for matrix in matrices]
    # A GPU would round to TF32, and then coefficients to other multiples.
    return jnp.einsum(pattern, image, *factors, precision=lax.Precision.HIGHEST)
