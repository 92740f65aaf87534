"""NIQE against goldens and closed forms of its parts."""

import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden
from scipy.special import gamma

from upsr_jax.evaluation.metric_list import load_pristine_model
from upsr_jax.metrics.niqe import BLOCK, fit_asymmetric, halve, niqe, normalized
from upsr_jax.ops import bicubic_upsample

PRISTINE = load_pristine_model()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A photograph of 256x256 pixels in unit range."""
    return golden("metrics")["gt"][0] / 255


def test_golden_photographs():
    file = golden("metrics")
    found = [niqe(image / 255, PRISTINE) for image in file["gt"]]
    np.testing.assert_allclose(found, file["niqe_gt"], rtol=1e-3)


def test_golden_upsampled_photographs():
    file = golden("metrics")
    images = jnp.clip(bicubic_upsample(jnp.asarray(file["lq"] / 255, jnp.float32)), 0, 1)
    found = [niqe(image, PRISTINE) for image in np.asarray(images)]
    np.testing.assert_allclose(found, file["niqe_bicubic"], rtol=1e-3)


def test_only_whole_blocks_count(photo):
    cropped = photo[: 2 * BLOCK, : 2 * BLOCK]
    assert niqe(photo[:200, :280], PRISTINE) == niqe(cropped, PRISTINE)
    assert niqe(photo[1:], PRISTINE) != niqe(cropped, PRISTINE)


def test_flat_blocks_do_not_count(photo):
    """The third block is flat, even at its border; the second one ends so."""
    image = np.full((BLOCK, 3 * BLOCK, 3), 0.2)
    image[:, : 2 * BLOCK - 8] = photo[:BLOCK, : 2 * BLOCK - 8]
    assert niqe(image, PRISTINE) == pytest.approx(niqe(image[:, : 2 * BLOCK], PRISTINE))


def test_images_without_two_blocks_are_refused(photo):
    with pytest.raises(ValueError, match=r"two blocks of 96x96 pixels, more than .* 191x191 holds"):
        niqe(photo[:191, :191], PRISTINE)
    with pytest.raises(ValueError, match="two blocks with texture"):
        niqe(np.full((192, 192, 3), 0.2), PRISTINE)


@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_fit_finds_a_distribution_s_shape_and_scales(shape):
    """Of |x|/scale ~ Gamma(1/shape)^(1/shape), sides are drawn as often as their scales say."""
    rng = np.random.default_rng(0)
    left, right = 0.5, 1.5
    is_left = rng.random((2, 500, 1000)) < left / (left + right)
    size = rng.gamma(1 / shape, size=is_left.shape) ** (1 / shape)
    x = size * np.where(is_left, -left, right)
    found = fit_asymmetric(x)
    np.testing.assert_allclose(found, [[shape] * 2, [left] * 2, [right] * 2], rtol=0.02)
    deviation = right * np.sqrt(gamma(3 / shape) / gamma(1 / shape))
    assert np.sqrt(np.mean(x[x > 0] ** 2)) == pytest.approx(deviation, rel=0.01)


def test_normalized_luma_has_no_mean_and_little_contrast_left():
    """A step of a (7/6)-pixel Gaussian window wide, 100 high, against its closed form."""
    y = np.full((20, 40), 50.0)
    y[:, 20:] = 150
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    below = weights[:3].sum() / weights.sum()  # of the window at column 20, left of the step
    mean = 150 - 100 * below
    deviation = 100 * np.sqrt(below * (1 - below))
    assert normalized(y)[10, 20] == pytest.approx((150 - mean) / (deviation + 1))
    np.testing.assert_array_equal(normalized(y)[:, [0, 10, 30, 39]], 0)


def test_halving_keeps_ramps_and_mirrors_edges():
    row, column = np.mgrid[:16, :24].astype(np.float64)
    halved = halve(3 * row + column)
    expected = 3 * (2 * row[:8, :12] + 0.5) + 2 * column[:8, :12] + 0.5
    np.testing.assert_allclose(halved[2:-2, 2:-2], expected[2:-2, 2:-2])
    np.testing.assert_allclose(halve(np.full((6, 8), 7.0)), 7)
    mirrored = np.pad(column, ((0, 0), (8, 8)), mode="symmetric")
    np.testing.assert_allclose(halve(column), halve(mirrored)[:, 4:-4])
