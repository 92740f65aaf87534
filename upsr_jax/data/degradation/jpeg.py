"""JPEG compression simulated: what the loss of a codec does, without its bit stream.

ITU-T T.81, with the tables of its Annex K. The released model was trained so. `xp` is the module
that the arrays are of: NumPy, or on a device `jax.numpy`.
"""

from typing import Any

import numpy as np
from einops import rearrange, reduce, repeat
from jaxtyping import Float

# Transposed, as in that simulation
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
    image: Float[Any, "h w 3"], quality: float | Float[Any, ""], xp: Any = np
) -> Float[Any, "h w 3"]:
    """Compress and decompress a unit image of any size at a quality above 0 and below 100, 4:2:0.

    The result has the image's dtype.
    """
    height, width = image.shape[:2]
    padded = xp.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)))
    ycbcr = padded * 255 @ YCBCR.T.astype(image.dtype)
    luma, chroma = ycbcr[..., :1] - 128, ycbcr[..., 1:]
    factor = xp.where(quality < 50, 50 / quality, 2 - quality / 50)
    luma = _requantize(luma, LUMA_TABLE * factor, xp)
    chroma = reduce(chroma, "(h y) (w x) c -> h w c", "mean", y=2, x=2)
    chroma = _requantize(chroma, CHROMA_TABLE * factor, xp)
    chroma = repeat(chroma, "h w c -> (h y) (w x) c", y=2, x=2)
    ycbcr = xp.concatenate([luma + 128, chroma], axis=-1)
    rgb = ycbcr @ RGB.T.astype(image.dtype)
    return xp.clip(rgb / 255, 0, 1)[:height, :width]


def _requantize(
    plane: Float[Any, "h w c"], step: Float[Any, "8 8"], xp: Any
) -> Float[Any, "h w c"]:
    """Round the cosine coefficients of 8x8 blocks to multiples of `step`, half to even."""
    dct, step = DCT.astype(plane.dtype), step.astype(plane.dtype)
    blocks = rearrange(plane, "(h y) (w x) c -> h w c y x", y=8, x=8)
    coefficients = dct @ blocks @ dct.T
    blocks = dct.T @ (xp.rint(coefficients / step) * step) @ dct
    return rearrange(blocks, "h w c y x -> (h y) (w x) c")
