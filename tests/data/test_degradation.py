import io
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage
from golden import golden, nhwc, seeded
from PIL import Image as PillowImage

from configs.degradations import imagenet_test, real_esrgan
from upsr_jax.data.degradation import host, kernels
from upsr_jax.data.degradation.host import (
    blur,
    degrade,
    poisson_noise,
    random_beta,
    random_blur,
    random_factor,
    random_interpolation,
    random_jpeg,
    random_noise,
    random_odd,
    random_sinc,
    resize_by,
    resize_to,
    sharpen,
    to_bytes,
    to_unit,
)
from upsr_jax.data.degradation.jpeg import simulate_jpeg

GOLDEN = golden("degradation")
BYTES = np.ascontiguousarray(GOLDEN["blur/image"].transpose(0, 2, 3, 1))
IMAGES = to_unit(BYTES)
INTERPOLATIONS = {
    "area": cv2.INTER_AREA,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
}
DRAWS = 2000


def settings(config_fn):
    return config_fn().to_dict()


def assert_frequency(hits, probability, draws=DRAWS):
    """Compare a count with its binomial distribution, at 4 standard deviations."""
    deviation = np.sqrt(draws * probability * (1 - probability))
    assert abs(np.sum(hits) - draws * probability) <= 4 * deviation


def assert_uniform(draws, low, high):
    """Compare the ends and the median of draws with those of a uniform distribution."""
    margin = 10 * (high - low) / len(draws)
    assert low <= min(draws) < low + margin
    assert high - margin < max(draws) <= high
    assert_frequency(np.array(draws) < (low + high) / 2, 0.5, len(draws))


# One step at a time


@pytest.mark.parametrize("case", range(2))
def test_blur_equals_golden(case):
    actual = blur(IMAGES[case], GOLDEN["blur/kernels"][case].astype(np.float64))
    expected = GOLDEN["blur/out"][case, 0]  # the green channel
    np.testing.assert_allclose(actual[..., 1], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [3, 11, 19])
@pytest.mark.parametrize("separable", [True, False])
def test_blur_equals_scipy(size, separable):
    q = kernels.quadratic_form(size, 2.0, 2.0 if separable else 0.7, 0.4)
    kernel = kernels.gaussian_kernel(q)
    expected = scipy.ndimage.correlate(
        IMAGES[0].astype(np.float64), kernel[..., np.newaxis], mode="mirror"
    )
    np.testing.assert_allclose(blur(IMAGES[0], kernel), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("resize/")])
def test_resize_equals_golden(name):
    _, target, mode = name.split("/")
    if target.startswith("scale"):
        actual = resize_by(IMAGES[0], float(target.removeprefix("scale")), INTERPOLATIONS[mode])
    else:
        height, width = map(int, target.removeprefix("size").split("x"))
        actual = resize_to(IMAGES[0], (height, width), INTERPOLATIONS[mode])
        assert actual.shape == (height, width, 3)
    expected = GOLDEN[name][0, 0]  # the green channel, its last 48 rows at most
    np.testing.assert_allclose(actual[-48:, :, 1], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("factor", [0.15, 0.499, 0.7377, 1.0, 1.2421])
@pytest.mark.parametrize("mode", INTERPOLATIONS.values())
def test_resize_by_rounds_sides_down(factor, mode):
    actual = resize_by(IMAGES[0, :101, :67], factor, mode)
    assert actual.shape == (int(101 * factor), int(67 * factor), 3)


@pytest.mark.parametrize("case", range(2))
def test_gaussian_noise_equals_golden(case):
    is_gray = GOLDEN["gaussian/is_gray"][case]
    noise = seeded(*(("gray_noise", (2, 1, 128, 128)) if is_gray else ("noise", (2, 3, 128, 128))))

    class Scripted(np.random.Generator):
        def standard_normal(self, *size: Any, **options: Any) -> Any:
            assert size == ((128, 128, noise.shape[1]),)
            return nhwc(noise)[case].astype(options["dtype"])

    sigma = float(GOLDEN["gaussian/sigma"][case])
    actual = random_noise(
        Scripted(np.random.PCG64(0)),
        IMAGES[case],
        gaussian_prob=1.0,
        sigma=(sigma, sigma),
        poisson_scale=(1.0, 1.0),
        gray_prob=float(is_gray),
    )
    expected = GOLDEN["gaussian/out"][case].transpose(1, 2, 0)  # its first 48 rows
    np.testing.assert_allclose(actual[:48], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(2))
def test_poisson_noise_has_the_goldens_deviation(case):
    rng = np.random.default_rng(case)
    noise = np.stack([poisson_noise(rng, IMAGES[case]) for _ in range(200)])
    deviation = GOLDEN["poisson/scale"][case] * noise.std(axis=0, ddof=1).mean()
    assert deviation == pytest.approx(GOLDEN["poisson/noise_std_mean"][case], rel=2e-3)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)


@pytest.mark.parametrize(("distinct", "photons"), [(1, 1), (5, 8), (8, 8), (256, 256)])
def test_poisson_noise_counts_photons(distinct, photons):
    levels = np.linspace(0, 255, distinct).round().astype(np.uint8) if distinct > 1 else [255]
    image = to_unit(np.resize(np.array(levels, np.uint8), (64, 64, 1)))
    counts = (poisson_noise(np.random.default_rng(0), image) + image) * photons
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    assert set(np.unique(counts.round()) % 2) == {0, 1}  # so of no fewer photons


def test_gray_poisson_noise_is_that_of_the_luma():
    image = np.full((128, 128, 3), (0.6, 0.5, 0.2), np.float32)
    noisy = random_noise(
        np.random.default_rng(0),
        image,
        gaussian_prob=0.0,
        sigma=(1.0, 1.0),
        poisson_scale=(0.05, 0.05),
        gray_prob=1.0,
    )
    noise = noisy - image
    np.testing.assert_allclose(noise, noise[..., :1].repeat(3, axis=-1), atol=1e-6)
    # One distinct value makes one photon at white: the variance is the mean, the luma in 8 bits
    luma = round(255 * (0.299 * 0.6 + 0.587 * 0.5 + 0.114 * 0.2)) / 255
    assert np.var(noise) == pytest.approx(0.05**2 * luma, rel=0.1)


def test_noise_is_clipped():
    for prob in (0.0, 1.0):
        noisy = random_noise(
            np.random.default_rng(0), IMAGES[0], prob, (30.0, 30.0), (3.0, 3.0), 0.0
        )
        assert noisy.min() == 0
        assert noisy.max() == 1


def test_sharpen_equals_golden():
    actual = np.stack([sharpen(image) for image in IMAGES])[..., 1]
    expected = GOLDEN["usm/out"][:, 0]  # the green channel
    np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=3e-6)
    # One pixel of the other image lies on the threshold, to float32, and on its other side here
    np.testing.assert_allclose(actual[1], expected[1], rtol=0, atol=5e-4)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_equals_pillows(quality):
    file = io.BytesIO()
    PillowImage.fromarray(to_bytes(IMAGES[0])).save(
        file, "jpeg", quality=quality, subsampling="4:2:0"
    )
    expected = np.asarray(PillowImage.open(file)) / 255
    actual = random_jpeg(np.random.default_rng(0), IMAGES[0], (quality, quality))
    assert np.abs(actual - expected).max() <= 2 / 255
    assert np.abs(actual - expected).mean() <= 0.1 / 255


# Draws


def test_random_odd_is_uniform_with_both_ends():
    rng = np.random.default_rng(0)
    draws = np.array([random_odd(rng, (3, 19)) for _ in range(DRAWS)])
    assert set(draws) == {3, 5, 7, 9, 11, 13, 15, 17, 19}
    for size in range(3, 21, 2):
        assert_frequency(draws == size, 1 / 9)


def test_random_factor_follows_its_probabilities_and_range():
    rng = np.random.default_rng(0)
    draws = np.array([random_factor(rng, 0.2, 0.7, (0.15, 1.5)) for _ in range(DRAWS)])
    assert_frequency(draws > 1, 0.2)
    assert_frequency(draws < 1, 0.7)
    assert_frequency(draws == 1, 0.1)
    assert_uniform(draws[draws > 1], 1, 1.5)
    assert_uniform(draws[draws < 1], 0.15, 1)


def test_random_beta_is_as_often_above_1_as_below():
    rng = np.random.default_rng(0)
    draws = np.array([random_beta(rng, (0.5, 4.0)) for _ in range(DRAWS)])
    assert_frequency(draws < 1, 0.5)
    assert_uniform(draws[draws < 1], 0.5, 1)
    assert_uniform(draws[draws > 1], 1, 4)


def test_random_interpolation_is_uniform():
    rng = np.random.default_rng(0)
    draws = np.array([random_interpolation(rng) for _ in range(DRAWS)])
    for mode in INTERPOLATIONS.values():
        assert_frequency(draws == mode, 1 / 3)


@pytest.fixture
def calls(monkeypatch):
    """Record (kernel function, arguments) of every blur, which then does nothing.

    Instead of q the functions get (size, sigma_x, sigma_y, theta).
    """
    recorded = []
    for name in ("gaussian_kernel", "generalized_gaussian_kernel", "plateau_kernel", "sinc_kernel"):

        def record(*args, name=name):
            recorded.append((name, args))
            return np.ones((1, 1))

        monkeypatch.setattr(kernels, name, record)
    monkeypatch.setattr(kernels, "quadratic_form", lambda *args: args)
    return recorded


def test_random_blur_draws_kernels_as_configured(calls):
    rng = np.random.default_rng(0)
    setting = {**settings(real_esrgan)["second"]["blur"], "sizes": (3, 19)}
    for _ in range(2 * DRAWS):
        random_blur(rng, IMAGES[0, :4, :4], **setting)
    assert_frequency(len(calls), 0.8, 2 * DRAWS)

    sincs = [args for name, args in calls if name == "sinc_kernel"]
    assert_frequency(len(sincs), 0.1, len(calls))
    assert_uniform([cutoff for size, cutoff in sincs if size < 13], np.pi / 3, np.pi)
    assert_uniform([cutoff for size, cutoff in sincs if size >= 13], np.pi / 5, np.pi)

    bells = [(name, *args[0]) for name, args in calls if name != "sinc_kernel"]
    names, sizes, sigma_x, sigma_y, theta = map(np.array, zip(*bells, strict=True))
    isotropic = sigma_x == sigma_y
    for name, iso_prob, aniso_prob in [
        ("gaussian_kernel", 0.45, 0.25),
        ("generalized_gaussian_kernel", 0.12, 0.03),
        ("plateau_kernel", 0.12, 0.03),
    ]:
        assert_frequency((names == name) & isotropic, iso_prob, len(bells))
        assert_frequency((names == name) & ~isotropic, aniso_prob, len(bells))
    assert set(sizes) == set(range(3, 20, 2))
    assert_uniform(sigma_x[isotropic], 0.2, 1.5)
    assert_uniform(sigma_x[~isotropic], 0.2, 1.5)
    assert_uniform(sigma_y[~isotropic], 0.2, 1.5)
    assert_uniform(theta[~isotropic], -np.pi, np.pi)

    betas = [args[1] for name, args in calls if name == "generalized_gaussian_kernel"]
    assert_uniform([beta for beta in betas if beta < 1], 0.5, 1)
    assert_uniform([beta for beta in betas if beta > 1], 1, 4)
    betas = [args[1] for name, args in calls if name == "plateau_kernel"]
    assert_frequency(np.array(betas) == 1, 0.5, len(betas))
    assert_uniform([beta for beta in betas if beta > 1], 1, 2)


def test_random_sinc_follows_its_probability(calls):
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        random_sinc(rng, IMAGES[0, :4, :4], prob=0.8, sizes=(3, 13))
    assert_frequency(len(calls), 0.8)
    assert {args[0] for _, args in calls} == {3, 5, 7, 9, 11, 13}
    assert_uniform([cutoff for _, (_, cutoff) in calls], np.pi / 3, np.pi)


def test_random_noise_follows_its_probabilities(monkeypatch):
    kinds = []

    class Recording(np.random.Generator):
        def standard_normal(self, *size: Any, **options: Any) -> Any:
            noise = np.zeros(*size, **options)
            kinds.append(("gaussian", noise.shape[-1]))
            return noise

    def record(rng, image):
        kinds.append(("poisson", image.shape[-1]))
        return np.zeros_like(image)

    monkeypatch.setattr(host, "poisson_noise", record)
    rng = Recording(np.random.PCG64(0))
    for _ in range(DRAWS):
        random_noise(rng, IMAGES[0, :4, :4], **settings(real_esrgan)["first"]["noise"])
    for kind in ("gaussian", "poisson"):
        for channels, probability in ((1, 0.4), (3, 0.6)):
            assert_frequency(kinds.count((kind, channels)), 0.5 * probability)


def test_random_jpeg_draws_every_quality(monkeypatch):
    qualities = []

    def record(suffix, image, options, encode=cv2.imencode):
        qualities.append(options[options.index(cv2.IMWRITE_JPEG_QUALITY) + 1])
        return encode(suffix, image, options)

    monkeypatch.setattr(cv2, "imencode", record)
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        random_jpeg(rng, IMAGES[0, :8, :8], (30, 95))
    assert set(qualities) == set(range(30, 96))
    assert_frequency([quality < 63 for quality in qualities], 0.5)


def test_a_simulated_jpeg_is_of_any_quality_of_the_range():
    draws = np.random.default_rng(0), np.random.default_rng(0)
    actual = random_jpeg(draws[0], IMAGES[0] * 1.5 - 0.2, (30, 95), simulated=True)
    quality = draws[1].uniform(30, 95)
    np.testing.assert_array_equal(
        actual, simulate_jpeg(np.clip(IMAGES[0] * 1.5 - 0.2, 0, 1), quality)
    )
    assert quality % 1


# The whole


@pytest.fixture
def steps(monkeypatch):
    """Record the name and the resulting height of every step; all resizes are bilinear."""
    monkeypatch.setattr(host, "random_interpolation", lambda rng: cv2.INTER_LINEAR)
    recorded = []
    names = ("random_blur", "resize_by", "resize_to", "random_noise", "random_jpeg", "random_sinc")
    for name in names:
        step = getattr(host, name)

        def record(*args, name=name, step=step, **kwargs):
            image = step(*args, **kwargs)
            recorded.append((name.removeprefix("random_"), image.shape[0]))
            return image

        monkeypatch.setattr(host, name, record)
    return recorded


FIRST = ["blur", "resize_by", "noise", "jpeg"]
SECOND = ["blur", "resize_to", "noise"]
FINALS = [["resize_to", "sinc", "jpeg"], ["jpeg", "resize_to", "sinc"]]


@pytest.mark.parametrize(
    ("config_fn", "passes"), [(real_esrgan, FIRST + SECOND), (imagenet_test, FIRST)]
)
def test_degrade_takes_the_steps_in_order(steps, config_fn, passes):
    finals = []
    config = settings(config_fn)
    for seed in range(200):
        steps.clear()
        lr = degrade(np.random.default_rng(seed), BYTES[0, :64, :48], **config)
        assert lr.shape == (16, 12, 3)
        names = [name for name, _ in steps]
        assert names[: len(passes)] == passes
        finals.append(FINALS.index(names[len(passes) :]))
        low, high = config["first"]["resize"]["factor"]
        assert int(64 * low) <= steps[1][1] <= 64 * high
        if config["second"]:
            low, high = config["second"]["resize"]["factor"]
            assert int(16 * low) <= steps[5][1] <= 16 * high
    assert_frequency(finals, 0.5, len(finals))


@pytest.mark.parametrize("config_fn", [real_esrgan, imagenet_test])
@pytest.mark.parametrize("height", [16, 128])
def test_degrade_makes_quarter_size_images_of_8_bits(config_fn, height):
    hr = BYTES[1, :height, :96]
    for seed in range(30):
        lr = degrade(np.random.default_rng(seed), hr, **settings(config_fn))
        assert lr.shape == (height // 4, 24, 3)
        assert lr.dtype == np.uint8


def test_degrade_depends_on_its_generator_alone():
    config = settings(real_esrgan)
    one, same, other = (degrade(np.random.default_rng(i), BYTES[0], **config) for i in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_batch_may_share_factors_ways_and_branches(monkeypatch):
    """Sizes and ways are then alike for a batch and differ between batches; noise never is."""
    seen = []
    for name in ("resize_by", "resize_to", "random_jpeg"):
        step = getattr(host, name)

        def record(*args, name=name, step=step, **kwargs):
            image = step(*args, **kwargs)
            seen[-1].append((name, image.shape, args[1:] if name.startswith("resize") else ()))
            return image

        monkeypatch.setattr(host, name, record)
    outputs = []
    for batch in range(3):
        for row in range(4):
            seen.append([])
            rng, shared = (np.random.default_rng((batch, n)) for n in (row, 99))
            config = settings(real_esrgan) | {"simulated_jpeg": True}
            outputs.append(degrade(rng, BYTES[0], **config, shared=shared).tobytes())
    for batch in range(3):
        assert all(steps == seen[4 * batch] for steps in seen[4 * batch : 4 * batch + 4])
    assert seen[0] != seen[4] != seen[8]
    assert len(set(outputs)) == 12


@pytest.mark.parametrize(("config_fn", "psnr"), [(real_esrgan, 17), (imagenet_test, 22)])
def test_degrade_keeps_the_scene(config_fn, psnr):
    """The low-resolution image stays near the mean of its pixels: upright, and in true colours."""
    mean = IMAGES[0].reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    images = (
        degrade(np.random.default_rng(seed), BYTES[0], **settings(config_fn)) for seed in range(40)
    )
    errors = [np.square(to_unit(lr) - mean).mean() for lr in images]
    assert -10 * np.log10(np.median(errors)) > psnr
    for wrong in (mean[..., ::-1], mean[::-1], mean[:, ::-1], mean.swapaxes(0, 1)):
        assert np.square(wrong - mean).mean() > 10 ** (-psnr / 10)
