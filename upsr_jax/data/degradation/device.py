"""The degradation of `host.py` on a device: one program of fixed shapes, each image with own draws.

An image lies at the top left of a square canvas that holds the largest one which the ranges allow.
What is on the canvas beside it is finite and else anything, as every step reads the image alone.
Crops are squares, so one size tells an image's sides. JPEG is simulated. The same distributions
come of other random numbers than on a host: `own` and `shared` give numbers drawn from [0, 1), an
image's own ones and those that images of a batch may have in common. They are drawn all at once,
as each generator of a single number would take as long to compile as a step.

Loader processes, which have no JAX, don't import this module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Key, UInt8, UInt32

from upsr_jax.data.degradation.host import IntRange, Range
from upsr_jax.data.degradation.jpeg import simulate_jpeg
from upsr_jax.data.degradation.poisson import BINS, CHANCE_BITS

Image = Float32[Array, "canvas canvas 3"]
Scalar = Float[Array, ""]
Size = Int[Array, ""]
Numbers = Iterator[Scalar]

AREA, BILINEAR, BICUBIC = range(3)  # ways of resizing
NUMBERS = 64  # more than an image needs
LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)  # Rec. 601


def degrade_batch(
    counts: UInt32[Array, "9 256 bins"],
    keys: Key[Array, " b"],
    shared: Key[Array, " b"],
    hr: UInt8[Array, "b side side 3"],
    first: Mapping[str, Any],
    second: Mapping[str, Any] | None,
    final: Mapping[str, Any],
    at_once: int | None,
) -> UInt8[Array, "b side//4 side//4 3"]:
    """Make the low-resolution images of `hr`, `at_once` of them at a time.

    None takes one after the other, which skips the steps that an image doesn't take: CPUs are
    faster so. Several at once, which GPUs need to be busy, take all steps and choose. `counts` is
    `poisson.packed_tables()`; `first`, `second` and `final` are those of `host.degrade`. Images
    whose keys in `shared` are the same have in common what `host.degrade` draws so.
    """
    one = partial(degrade, counts, first=first, second=second, final=final)
    # GPUs would round what goes into products to TF32.
    with jax.default_matmul_precision("highest"):
        return lax.map(lambda args: one(*args), (keys, shared, hr), batch_size=at_once)


def degrade(
    counts: UInt32[Array, "9 256 bins"],
    key: Key[Array, ""],
    shared_key: Key[Array, ""],
    hr: UInt8[Array, "side side 3"],
    first: Mapping[str, Any],
    second: Mapping[str, Any] | None,
    final: Mapping[str, Any],
) -> UInt8[Array, "side//4 side//4 3"]:
    """Make the low-resolution image of `hr`, see `degrade_batch`."""
    key_own, key_first, key_second = jax.random.split(key, 3)
    own, shared = (iter(jax.random.uniform(k, (NUMBERS,))) for k in (key_own, shared_key))
    side, quarter = hr.shape[0], hr.shape[0] // 4
    size = jnp.int32(side)

    image = random_blur(own, shared, hr.astype(jnp.float32) / 255, size, **first["blur"])
    factor = random_factor(shared, **first["resize"])
    largest = int(side * first["resize"]["factor"][1])
    new_size = scaled(side, factor, largest)
    image = resize(image, size, new_size, 1 / factor, random_way(next(shared)), largest)
    size = new_size
    image = random_noise(counts, key_first, own, shared, image, size, **first["noise"])
    image = random_jpeg(next(own), image, size, first["jpeg_quality"])

    if second is not None:
        image = random_blur(own, shared, image, size, **second["blur"])
        factor = random_factor(shared, **second["resize"])
        largest = int(quarter * second["resize"]["factor"][1])
        new_size = scaled(quarter, factor, largest)
        image = resize(image, size, new_size, size / new_size, random_way(next(shared)), largest)
        size = new_size
        image = random_noise(counts, key_second, own, shared, image, size, **second["noise"])

    jpeg_last = next(shared) < 0.5
    jpeg_fn = partial(random_jpeg, next(own), quality=final["jpeg_quality"])
    image = when(~jpeg_last, partial(jpeg_fn, size=size), image)
    last = jnp.int32(quarter)
    image = resize(image, size, last, size / last, random_way(next(shared)), quarter)
    image = random_sinc(own, image, last, **final["sinc"])
    image = when(jpeg_last, partial(jpeg_fn, size=last), image)
    return to_levels(image).astype(jnp.uint8)


def random_blur(
    own: Numbers,
    shared: Numbers,
    image: Image,
    size: Size,
    prob: float,
    sizes: IntRange,
    sinc_prob: float,
    bell_probs: Sequence[float],
    sigma: Range,
    beta_generalized: Range,
    beta_plateau: Range,
) -> Image:
    """Blur as `host.random_blur` does."""
    kernel_size = random_odd(next(own), sizes)
    lowest = jnp.where(kernel_size < 13, np.pi / 3, np.pi / 5)
    sinc = sinc_kernel(sizes[1], kernel_size, between(next(own), lowest, np.pi))

    bell = jnp.sum(next(own) >= np.cumsum(bell_probs)[:-1])
    anisotropic = bell % 2 == 1
    sigma_x, sigma_y = between(next(own), *sigma), between(next(own), *sigma)
    sigma_y = jnp.where(anisotropic, sigma_y, sigma_x)
    theta = jnp.where(anisotropic, between(next(own), -np.pi, np.pi), 0.0)
    generalized, plateau = (random_beta(own, beta) for beta in (beta_generalized, beta_plateau))
    beta = jnp.select([bell < 2, bell < 4], [jnp.ones(()), generalized], plateau)
    bells = bell_kernel(sizes[1], kernel_size, sigma_x, sigma_y, theta, beta, bell >= 4)

    kernel = jnp.where(next(own) < sinc_prob, sinc, bells)
    return when(next(shared) < prob, lambda x: blur(x, size, kernel), image)


def random_sinc(own: Numbers, image: Image, size: Size, prob: float, sizes: IntRange) -> Image:
    """Make edges ring as `host.random_sinc` does."""
    kernel_size = random_odd(next(own), sizes)
    kernel = sinc_kernel(sizes[1], kernel_size, between(next(own), np.pi / 3, np.pi))
    return when(next(own) < prob, lambda x: blur(x, size, kernel), image)


def random_factor(numbers: Numbers, up_prob: float, down_prob: float, factor: Range) -> Scalar:
    """Draw a resize factor as `host.random_factor` does."""
    low, high = factor
    direction, place = next(numbers), next(numbers)
    smaller = jnp.where(direction < up_prob + down_prob, between(place, low, 1.0), 1.0)
    return jnp.where(direction < up_prob, between(place, 1.0, high), smaller)


def random_noise(
    counts: UInt32[Array, "9 256 bins"],
    key: Key[Array, ""],
    own: Numbers,
    shared: Numbers,
    image: Image,
    size: Size,
    gaussian_prob: float,
    sigma: Range,
    poisson_scale: Range,
    gray_prob: float,
) -> Image:
    """Add Gaussian or else Poisson noise and clip, as `host.random_noise` does."""
    gray = next(own) < gray_prob
    strength = next(own)

    def gaussian() -> Image:
        return jax.random.normal(key, image.shape) * (between(strength, *sigma) / 255)

    def poisson() -> Image:
        mean = jnp.where(gray, image @ LUMA, image)
        return poisson_noise(counts, key, mean, size) * between(strength, *poisson_scale)

    noise = lax.cond(next(shared) < gaussian_prob, gaussian, poisson)
    return jnp.clip(image + jnp.where(gray, noise[..., :1], noise), 0, 1)


def random_jpeg(number: Scalar, image: Image, size: Size, quality: Range | IntRange) -> Image:
    """Simulate JPEG at a drawn quality. Blocks that the image doesn't fill hold zeros beside it."""
    inside = is_inside(size, len(image))[..., np.newaxis]
    image = jnp.where(inside, jnp.clip(image, 0, 1), 0)
    # Rounded up to 100, a draw would divide by zero.
    drawn = jnp.minimum(between(number, *map(float, quality)), np.nextafter(np.float32(100), 0))
    return simulate_jpeg(image, drawn, jnp)


def random_odd(number: Scalar, sizes: IntRange) -> Size:
    """Draw an odd number between two odd ends, both included."""
    smallest, largest = sizes
    return smallest + 2 * (number * (largest // 2 - smallest // 2 + 1)).astype(jnp.int32)


def random_beta(numbers: Numbers, beta: Range) -> Scalar:
    """Draw an exponent from below 1 or from above, with equal chance."""
    low, high = beta
    way, place = next(numbers), next(numbers)
    return jnp.where(way < 0.5, between(place, low, 1.0), between(place, 1.0, high))


def random_way(number: Scalar) -> Size:
    """Draw one of area, bilinear and bicubic (a = -0.75)."""
    return (number * 3).astype(jnp.int32)


def between(number: Scalar, low: float | Scalar, high: float) -> Scalar:
    """Move a number of [0, 1) into another range."""
    return low + number * (high - low)


def when(wished: Bool[Array, ""], step_fn: Callable[[Image], Image], image: Image) -> Image:
    """Take a step, or none."""
    return lax.cond(wished, step_fn, lambda x: x, image)


def bell_kernel(
    canvas: int, size: Size, sigma_x: Scalar, sigma_y: Scalar, theta: Scalar, beta: Scalar, plateau
) -> Float32[Array, "canvas canvas"]:
    """Compute one of the bells of `kernels.py`, of an odd size, in the middle of a canvas.

    With q as there it is 1 / (1 + q^beta) if `plateau`, else exp(-q^beta / 2).
    """
    x, y = offsets(canvas)
    along = (x * jnp.cos(theta) + y * jnp.sin(theta)) / sigma_x
    across = (y * jnp.cos(theta) - x * jnp.sin(theta)) / sigma_y
    power = (along**2 + across**2) ** beta
    return normalize(jnp.where(plateau, 1 / (1 + power), jnp.exp(-power / 2)), size)


def sinc_kernel(canvas: int, size: Size, cutoff: Scalar) -> Float32[Array, "canvas canvas"]:
    """Compute `kernels.sinc_kernel`, of an odd size, in the middle of a canvas."""
    r = np.hypot(*offsets(canvas))
    centre = r == 0
    r = np.where(centre, np.float32(1), r)
    # J₁ by the trapezoidal rule on its integral (dlmf.nist.gov/10.9.E2), which is exact to rounding
    # from some more nodes on than half of the largest argument.
    nodes = 2 * canvas + 30
    angle = ((np.arange(nodes) + 0.5) * np.pi / nodes).astype(np.float32)
    j1 = jnp.mean(jnp.cos(angle - cutoff * r[..., np.newaxis] * np.sin(angle)), axis=-1)
    around = cutoff * j1 / (2 * np.pi * r)
    return normalize(jnp.where(centre, cutoff**2 / (4 * np.pi), around), size)


def offsets(canvas: int) -> Float32[np.ndarray, "2 canvas canvas"]:
    """Give x and y of every pixel of a kernel's canvas, from its centre."""
    return (np.mgrid[:canvas, :canvas][::-1] - canvas // 2).astype(np.float32)


def normalize(kernel: Float32[Array, "canvas canvas"], size: Size) -> Array:
    """Cut a kernel to its size, and bring its sum to 1."""
    kernel = jnp.where(np.abs(offsets(len(kernel))).max(0) <= size // 2, kernel, 0)
    return kernel / kernel.sum()


def blur(image: Image, size: Size, kernel: Float32[Array, "odd odd"]) -> Image:
    """Filter an image, reflected (101) at its edges, with a symmetric kernel of sum 1.

    By FFT: that of 19x19 pixels takes a third of the arithmetic of a convolution, in float32 on
    GPUs too, and grouped convolutions, a kernel an image, are slow on all devices.
    """
    canvas, reach = len(image), len(kernel) - 1
    side = scipy.fft.next_fast_len(canvas + reach, real=True)
    period = jnp.maximum(2 * size - 2, 1)
    place = (jnp.arange(side) - reach // 2) % period
    place = jnp.minimum(place, period - place)
    extended = jnp.take(jnp.take(image, place, 0, mode="clip"), place, 1, mode="clip")
    spectrum = jnp.fft.rfft2(kernel, (side, side))[..., np.newaxis]
    filtered = jnp.fft.irfft2(
        jnp.fft.rfft2(extended, axes=(0, 1)) * spectrum, (side, side), axes=(0, 1)
    )
    return filtered[reach : reach + canvas, reach : reach + canvas]


def scaled(side: int, factor: Scalar, largest: int) -> Size:
    """Scale a side, rounded down."""
    return jnp.clip((side * factor).astype(jnp.int32), 1, largest)


def resize(image: Image, size: Size, new_size: Size, step: Scalar, way: Size, canvas: int) -> Array:
    """Resize an image, see `interpolation`, onto a canvas of another side."""
    matrix = interpolation(size, new_size, step, way, len(image), canvas)
    rows = jnp.einsum("ij,jkc->ikc", matrix, image)
    return jnp.einsum("lk,ikc->ilc", matrix, rows)


def interpolation(
    size: Size, new_size: Size, step: Scalar, way: Size, canvas: int, new_canvas: int
) -> Float32[Array, "new_canvas canvas"]:
    """Build the matrix that resizes a column of pixels, without antialias.

    Bilinear and bicubic samples are `step` pixels apart, and pixels outside are those at the edge.
    Area averages the whole pixels that each of `new_size` equal strips touches.
    """
    new, old = jnp.arange(new_canvas)[:, jnp.newaxis], jnp.arange(canvas)
    start, end = new * size // new_size, -(-(new + 1) * size // new_size)
    area = jnp.where((start <= old) & (old < end), 1 / (end - start), 0)
    place = (new + 0.5) * step - 0.5
    left = jnp.floor(place).astype(jnp.int32)
    points = jnp.zeros_like(area)
    for pixel in (left - 1, left, left + 1, left + 2):
        distance = jnp.abs(place - pixel)
        weight = jnp.where(way == BILINEAR, jnp.maximum(1 - distance, 0), cubic(distance))
        points += jnp.where(jnp.clip(pixel, 0, size - 1) == old, weight, 0)
    return jnp.where(way == AREA, area, points)


def cubic(distance: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Weigh pixels at most two away (Keys 1981, a = -0.75)."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    return jnp.where(distance < 1, near, far)


def poisson_noise(
    counts: UInt32[Array, "9 256 bins"], key: Key[Array, ""], image: Image, size: Size
) -> Image:
    """Draw the deviation of a photon count from its mean, as `host.poisson_noise` does."""
    level = to_levels(image).astype(jnp.uint32)
    # Which levels there are, in eight words of 32 bits
    inside = is_inside(size, len(image))[..., np.newaxis]
    bit = jnp.where(inside, jnp.uint32(1) << level % 32, 0)
    words = [
        lax.reduce(jnp.where(level // 32 == i, bit, 0), np.uint32(0), lax.bitwise_or, (0, 1, 2))
        for i in range(8)
    ]
    distinct = lax.population_count(jnp.stack(words)).sum(dtype=jnp.uint32)
    doublings = 32 - lax.clz(distinct - 1)
    # Nine bits choose a bin, the others whether its own count or the other one.
    drawn = jax.random.bits(key, image.shape)
    own, chance = drawn >> CHANCE_BITS, drawn % 2**CHANCE_BITS
    entry = jnp.take(counts, (doublings * 256 + level) * BINS + own, mode="clip")
    photons = jnp.where(chance < entry % 2**CHANCE_BITS, own, entry >> CHANCE_BITS)
    return photons / jnp.exp2(doublings.astype(jnp.float32)) - level / 255


def to_levels(image: Image) -> Image:
    """Clip a unit image and round it to steps of 8 bits."""
    return jnp.round(jnp.clip(image, 0, 1) * 255)


def is_inside(size: Size, canvas: int) -> Bool[Array, "canvas canvas"]:
    """Tell which pixels of a canvas belong to the image."""
    inside = jnp.arange(canvas) < size
    return inside[:, jnp.newaxis] & inside
