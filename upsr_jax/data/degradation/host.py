"""The two-order degradation of Real-ESRGAN (arXiv 2107.10833) on a host, one image at a time.

Whole images come and go as 8 bits. Inside, images are RGB, float32 and unit; between two steps that
clip they may leave [0, 1]. Every draw comes from the one generator given. Kernels keep their own
size: the common canvas of batched implementations only adds zeros. In the arguments below, a range
is its two ends.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy.sparse import csr_array

from upsr_jax.data.degradation import kernels
from upsr_jax.data.degradation.jpeg import simulate_jpeg
from upsr_jax.data.degradation.poisson import draw_counts

Image = Float32[np.ndarray, "_ _ 3"]  # of any size
Range = tuple[float, float]
IntRange = tuple[int, int]


def degrade(
    rng: np.random.Generator,
    hr: UInt8[np.ndarray, "h w 3"],
    first: Mapping[str, Any],
    second: Mapping[str, Any] | None,
    final: Mapping[str, Any],
    simulated_jpeg: bool,
    shared: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "h//4 w//4 3"]:
    """Make the low-resolution image of `hr`.

    `first` and `second` hold the arguments of `random_blur`, `random_factor` and `random_noise`
    under "blur", "resize" and "noise", `first` also "jpeg_quality"; without `second` its three
    steps are skipped. `final` holds those of `random_sinc` under "sinc", and "jpeg_quality".
    `simulated_jpeg` is for `random_jpeg`. What images of a batch may have in common is drawn from
    `shared`, if given: factors and ways of resizing, and which of two ways is taken.
    """
    shared = shared or rng
    height, width = hr.shape[0] // 4, hr.shape[1] // 4

    image = random_blur(rng, to_unit(hr), **first["blur"], shared=shared)
    factor = random_factor(shared, **first["resize"])
    image = resize_by(image, factor, random_interpolation(shared))
    image = random_noise(rng, image, **first["noise"], shared=shared)
    image = random_jpeg(rng, image, first["jpeg_quality"], simulated_jpeg)

    if second is not None:
        image = random_blur(rng, image, **second["blur"], shared=shared)
        factor = random_factor(shared, **second["resize"])
        size = int(height * factor), int(width * factor)
        image = resize_to(image, size, random_interpolation(shared))
        image = random_noise(rng, image, **second["noise"], shared=shared)

    jpeg_last = shared.random() < 0.5
    if not jpeg_last:
        image = random_jpeg(rng, image, final["jpeg_quality"], simulated_jpeg)
    image = resize_to(image, (height, width), random_interpolation(shared))
    image = random_sinc(rng, image, **final["sinc"])
    if jpeg_last:
        image = random_jpeg(rng, image, final["jpeg_quality"], simulated_jpeg)
    return to_bytes(image)


def random_blur(
    rng: np.random.Generator,
    image: Image,
    prob: float,
    sizes: IntRange,
    sinc_prob: float,
    bell_probs: Sequence[float],
    sigma: Range,
    beta_generalized: Range,
    beta_plateau: Range,
    shared: np.random.Generator | None = None,
) -> Image:
    """Blur with probability `prob`, by a sinc filter or by one of six bells, of odd size.

    `bell_probs`: Gaussian isotropic, anisotropic; generalized Gaussian isotropic, anisotropic;
    plateau isotropic, anisotropic. `sigma` is in pixels. `shared`, if given, draws whether.
    """
    if (shared or rng).random() >= prob:
        return image
    size = random_odd(rng, sizes)
    if rng.random() < sinc_prob:
        lowest = np.pi / 3 if size < 13 else np.pi / 5
        return blur(image, kernels.sinc_kernel(size, rng.uniform(lowest, np.pi)))
    bell, anisotropic = divmod(int(rng.choice(6, p=bell_probs)), 2)
    sigma_x = sigma_y = rng.uniform(*sigma)
    theta = 0.0
    if anisotropic:
        sigma_y = rng.uniform(*sigma)
        theta = rng.uniform(-np.pi, np.pi)
    q = kernels.quadratic_form(size, sigma_x, sigma_y, theta)
    if bell == 0:
        return blur(image, kernels.gaussian_kernel(q))
    if bell == 1:
        beta = random_beta(rng, beta_generalized)
        return blur(image, kernels.generalized_gaussian_kernel(q, beta))
    return blur(image, kernels.plateau_kernel(q, random_beta(rng, beta_plateau)))


def random_sinc(rng: np.random.Generator, image: Image, prob: float, sizes: IntRange) -> Image:
    """Make edges ring, with probability `prob`, by a sinc filter of odd size."""
    if rng.random() >= prob:
        return image
    size = random_odd(rng, sizes)
    return blur(image, kernels.sinc_kernel(size, rng.uniform(np.pi / 3, np.pi)))


def random_factor(
    rng: np.random.Generator, up_prob: float, down_prob: float, factor: Range
) -> float:
    """Draw a resize factor: from 1 to the upper end, from the lower end to 1, or else 1."""
    low, high = factor
    direction = rng.random()
    if direction < up_prob:
        return rng.uniform(1, high)
    if direction < up_prob + down_prob:
        return rng.uniform(low, 1)
    return 1.0


def random_noise(
    rng: np.random.Generator,
    image: Image,
    gaussian_prob: float,
    sigma: Range,
    poisson_scale: Range,
    gray_prob: float,
    shared: np.random.Generator | None = None,
) -> Image:
    """Add Gaussian or else Poisson noise and clip.

    With `gray_prob` all channels get the same noise. `sigma` is in steps of 8 bits. `shared`, if
    given, draws which of the two noises.
    """
    gray = rng.random() < gray_prob
    if (shared or rng).random() < gaussian_prob:
        shape = (*image.shape[:2], 1 if gray else 3)
        scale = rng.uniform(*sigma) / 255
        noise = rng.standard_normal(shape, dtype=np.float32)
    else:
        scale = rng.uniform(*poisson_scale)
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., np.newaxis] if gray else image
        noise = poisson_noise(rng, luma)
    return np.clip(image + noise * np.float32(scale), 0, 1)


def random_jpeg(
    rng: np.random.Generator, image: Image, quality: IntRange, simulated: bool = False
) -> Image:
    """Compress by libjpeg (4:2:0) at a drawn quality, both ends included, and decompress.

    `simulated`: by `simulate_jpeg` instead, which takes any quality in between and no 8 bits.
    """
    if simulated:
        return simulate_jpeg(np.clip(image, 0, 1), rng.uniform(*quality))
    options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*quality, endpoint=True))]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(to_bytes(image), cv2.COLOR_RGB2BGR), options)
    return to_unit(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)))


def random_odd(rng: np.random.Generator, sizes: IntRange) -> int:
    """Draw an odd number between two odd ends, both included."""
    smallest, largest = sizes
    return 2 * int(rng.integers(smallest // 2, largest // 2, endpoint=True)) + 1


def random_beta(rng: np.random.Generator, beta: Range) -> float:
    """Draw an exponent from below 1 or from above, with equal chance."""
    low, high = beta
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def random_interpolation(rng: np.random.Generator) -> int:
    """Draw one of area, bilinear and bicubic (a = -0.75)."""
    return int(rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))


def blur(image: Image, kernel: Float64[np.ndarray, "size size"]) -> Image:
    """Filter an image, reflected (101) at its edges, with a symmetric kernel of sum 1."""
    row, column = kernel.sum(axis=0), kernel.sum(axis=1)
    if (
        np.abs(np.outer(column, row) - kernel).max() < 1e-9
    ):  # separable, and up to 8 times faster so
        return cv2.sepFilter2D(image, -1, row, column, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def sharpen(image: Image) -> Image:
    """Add half of what a blur takes away, around pixels where that is more than 10 of 255."""
    residual = image - _soften(image)
    mask = _soften((np.abs(residual) * 255 > 10).astype(np.float32))
    return mask * np.clip(image + residual / 2, 0, 1) + (1 - mask) * image


def _soften(image: Image) -> Image:
    return cv2.GaussianBlur(image, (51, 51), sigmaX=8, borderType=cv2.BORDER_REFLECT_101)


def resize_by(image: Image, factor: float, interpolation: int) -> Image:
    """Resize to floor(side * factor), without antialias.

    Samples are 1 / factor pixels apart, whatever the rounding of the sides, as in PyTorch.
    """
    height, width = int(image.shape[0] * factor), int(image.shape[1] * factor)
    if interpolation == cv2.INTER_AREA:
        return resize_to(image, (height, width), interpolation)
    # OpenCV rounds the sides instead; a row or column too many is cut off.
    resized = cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation)
    return resized[:height, :width]


def resize_to(image: Image, size: tuple[int, int], interpolation: int) -> Image:
    """Resize to (height, width), without antialias."""
    height, width = size
    if interpolation == cv2.INTER_AREA:
        return _average_rows(_average_rows(image, height).swapaxes(0, 1), width).swapaxes(0, 1)
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _average_rows(image: Image, height: int) -> Image:
    """Average the whole rows that each of `height` equal strips touches: PyTorch's "area".

    OpenCV's weighs a row that two strips share by its parts, and interpolates when it enlarges.
    """
    rows = image.shape[0]
    strip = np.arange(height)
    start = strip * rows // height
    count = -(-(strip + 1) * rows // height) - start
    ends = np.cumsum(count)
    touched = np.arange(ends[-1]) + np.repeat(start + count - ends, count)
    weights = np.repeat(1 / count, count).astype(np.float32)
    mean = csr_array((weights, touched, np.append(0, ends)), shape=(height, rows))
    return (mean @ image.reshape(rows, -1)).reshape(height, *image.shape[1:])


def poisson_noise(
    rng: np.random.Generator, image: Float32[np.ndarray, "h w c"]
) -> Float32[np.ndarray, "h w c"]:
    """Draw the deviation of a photon count from its mean.

    White is a power of two of photons: the first that is no less than the number of distinct
    8-bit values in the image.
    """
    signal = to_bytes(image)
    distinct = int(np.count_nonzero(np.bincount(signal.ravel())))
    photons = 2 ** (distinct - 1).bit_length()
    counts = draw_counts(rng, signal, photons)
    return (counts / photons).astype(np.float32) - to_unit(signal)


def to_bytes(image: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Clip a unit image and round it to 8 bits."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_unit(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Bring an 8-bit image to [0, 1]."""
    return image.astype(np.float32) / 255
