"""PSNR and SSIM on luma, as super-resolution papers report them.

Both compare batches of unit RGB images of any float dtype, without border crop. They do not clip:
clip a network's output to [0, 1] first, and don't round it. Published numbers are float64 ones
(`jax.enable_x64`); float32 is within 1e-4 of them. For `sizes` see `metrics.canvas`.
"""

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from upsr_jax.ops import Sizes, mean_inside, window_count

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def luma(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
    """Take Y of ITU-R BT.601 YCbCr, 16..235, from unit RGB."""
    weights = jnp.array([65.481, 128.553, 24.966], image.dtype)
    return jnp.einsum("bhwc,c->bhw", image, weights, precision="highest") + 16


def psnr_y(
    a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"], sizes: Sizes | None = None
) -> Float[Array, " b"]:
    """Measure the peak signal-to-noise ratio on Y, in dB, of each pair of unit images.

    The mean squared error is that of Y/255, plus 1e-8: equal images have 80 dB.
    """
    check_pair(a, b)
    error = mean_inside(((luma(a) - luma(b)) / 255) ** 2, sizes)
    return -10 * jnp.log10(error + 1e-8)


def ssim_y(
    a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"], sizes: Sizes | None = None
) -> Float[Array, " b"]:
    """Measure the structural similarity on Y of each pair of unit images.

    Wang et al., IEEE Trans. Image Processing 2004, eq. 13, averaged over all 11x11 windows inside
    the image. As in this field's published numbers, Y is rounded to integers and a negative
    contrast-structure term counts as 0. Sides must be at least 11; an image on the canvas that is
    smaller than that gives NaN.
    """
    check_pair(a, b)
    luminance, structure = _ssim_factors(jnp.round(luma(a)), jnp.round(luma(b)))
    windows = window_count(sizes, SSIM_WINDOW, stride=1, padding=0)
    return mean_inside(luminance * jnp.maximum(structure, 0), windows)


def ssim_loss(a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
    """Measure 1 - SSIM on Y of each pair of unit images, to learn from: 0..2.

    As `ssim_y`, but Y is not rounded and negative terms count, so that all has a gradient.
    """
    check_pair(a, b)
    luminance, structure = _ssim_factors(luma(a), luma(b))
    return 1 - jnp.mean(luminance * structure, axis=(1, 2))


def _ssim_factors(
    a: Float[Array, "b h w"], b: Float[Array, "b h w"]
) -> tuple[Float[Array, "b h2 w2"], Float[Array, "b h2 w2"]]:
    """Compare luminance, and contrast with structure, of two lumas in every window."""
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs sides of at least {SSIM_WINDOW} pixels, not {a.shape[1]}x{a.shape[2]}"
        )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    middle = 128.0  # centred, as a variance is a small difference of squares
    x, y = a - middle, b - middle
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = window_means(jnp.stack([x, y, x * x, y * y, x * y]))
    variance_sum = mean_xx - mean_x**2 + mean_yy - mean_y**2
    covariance = mean_xy - mean_x * mean_y
    structure = (2 * covariance + c2) / (variance_sum + c2)
    mean_x, mean_y = mean_x + middle, mean_y + middle
    return (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1), structure


def window_means(x: Float[Array, "n b h w"]) -> Float[Array, "n b h2 w2"]:
    """Average with the SSIM window around every pixel whose window lies inside the image."""
    offset = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    kernel = np.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weights = (kernel / kernel.sum()).tolist()
    height, width = (side - SSIM_WINDOW + 1 for side in x.shape[2:])
    # Shifted sums rather than a convolution: accelerators round a convolution's input.
    x = reduce(jnp.add, [weight * x[:, :, i : i + height] for i, weight in enumerate(weights)])
    return reduce(jnp.add, [weight * x[..., i : i + width] for i, weight in enumerate(weights)])


def check_pair(a: Array, b: Array) -> None:
    """Refuse two batches of different shapes."""
    if a.shape != b.shape:
        raise ValueError(f"The images to compare differ in shape: {a.shape} and {b.shape}")
