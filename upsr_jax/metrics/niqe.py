"""NIQE: how far an image's statistics are from those of natural photographs; lower is better.

Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal
Processing Letters 20(3), 2013; the equations are its. On the host, in float64.
"""

from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.special import gamma

BLOCK = 96  # pixels a side at the first scale, half as many at the second
SHAPES = np.arange(0.2, 10.001, 0.001)  # candidates of a distribution's shape, from near 0 up
MOMENT_RATIOS = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))  # E|x|²/E[x²]
# Keys' cubic kernel (a = -0.5) stretched to halve a side, at -3.5, -2.5, ..., 3.5 source pixels.
HALVING = np.array([-0.01171875, -0.03515625, 0.11328125, 0.43359375])


class PristineModel(NamedTuple):
    """The normal distribution of the features of natural photographs."""

    mean: Float[np.ndarray, " f"]
    covariance: Float[np.ndarray, "f f"]


def niqe(image: Float[np.ndarray, "h w 3"], pristine: PristineModel) -> float:
    """Measure a unit RGB image: how far its features' distribution is from `pristine` (eq. 10).

    Y is rounded to 8 bits, as published numbers are, and cropped to whole blocks at right and
    bottom. All blocks count but those that are flat, which have no statistics.

    Raises:
      ValueError: fewer than two blocks of 96x96 pixels fit into the image or are not flat.
    """
    height, width = (side // BLOCK * BLOCK for side in image.shape[:2])
    if height * width < 2 * BLOCK**2:
        raise ValueError(
            f"NIQE needs two blocks of {BLOCK}x{BLOCK} pixels, "
            f"more than an image of {image.shape[0]}x{image.shape[1]} holds"
        )
    y = np.round(255 * image[:height, :width].astype(np.float64) @ [0.299, 0.587, 0.114])
    features = np.concatenate(
        [block_features(y, BLOCK), block_features(halve(y), BLOCK // 2)], axis=1
    )
    features = features[np.isfinite(features).all(axis=1)]
    if len(features) < 2:
        raise ValueError(
            "NIQE needs two blocks with texture, and this image is flat in all but one"
        )
    difference = pristine.mean - features.mean(axis=0)
    covariance = (pristine.covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(covariance) @ difference))


def block_features(y: Float[np.ndarray, "h w"], size: int) -> Float[np.ndarray, "n 18"]:
    """Compute 18 features of each block of `size`; not finite where a block is flat."""
    blocks = rearrange(normalized(y), "(nh p) (nw q) -> (nh nw) p q", p=size, q=size)
    with np.errstate(divide="ignore", invalid="ignore"):
        shape, left, right = fit_asymmetric(blocks)
        features = [shape, (left + right) / 2]
        for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
            shape, left, right = fit_asymmetric(blocks * np.roll(blocks, shift, axis=(1, 2)))
            mean = (right - left) * gamma(2 / shape) / gamma(1 / shape)  # eq. 8
            features += [shape, mean, left, right]
    return np.stack(features, axis=1)


def normalized(y: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Take the local mean away and divide by the local deviation plus 1 (eq. 1-3)."""

    def local_mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 7 / 6, radius=3, mode="nearest")

    mean = local_mean(y)
    difference = np.round(y - mean, 9)  # no rounding errors where y is flat: they have statistics
    return difference / (np.sqrt(np.abs(local_mean(y**2) - mean**2)) + 1)


def fit_asymmetric(
    blocks: Float[np.ndarray, "n h w"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Fit an asymmetric generalized Gaussian to each block: shape, left and right scale (eq. 5).

    Moments are matched as in Lasmar, Stitou and Berthoumieu, ICIP 2009.
    """

    def deviation(side: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(blocks**2 * side, axis=(1, 2)) / np.sum(side, axis=(1, 2)))

    left, right = deviation(blocks < 0), deviation(blocks > 0)
    ratio = left / right
    moment_ratio = np.mean(np.abs(blocks), axis=(1, 2)) ** 2 / np.mean(blocks**2, axis=(1, 2))
    moment_ratio *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    borders = (MOMENT_RATIOS[1:] + MOMENT_RATIOS[:-1]) / 2
    shape = SHAPES[np.searchsorted(borders, moment_ratio)]  # the nearest candidate
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def halve(y: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h2 w2"]:
    """Halve both sides by antialiased cubic convolution, the edges mirrored."""
    weights = np.concatenate([[0], HALVING, HALVING[::-1]])  # of odd length, to be centred
    for axis in (0, 1):
        y = correlate1d(y, weights, axis, mode="reflect")
    return y[::2, ::2]
