"""Degradation on a device: each step against goldens, its draws, and the whole against the host."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from compare_degradations import compare, degrade_on_device, degrade_on_host, measure
from golden import golden, nhwc
from test_degradation import BYTES, DRAWS, IMAGES, assert_frequency, assert_uniform

from configs import released_x4
from configs.degradations import imagenet_test
from upsr_jax.data.degradation import device, host
from upsr_jax.data.degradation.poisson import BINS, CHANCE_BITS, packed_tables

GOLDEN = golden("degradation")
WAYS = {"area": device.AREA, "bilinear": device.BILINEAR, "bicubic": device.BICUBIC}
CANVAS = 150
KEYS = jax.random.split(jax.random.key(0), DRAWS)
NUMBERS = jax.random.uniform(jax.random.key(1), (DRAWS, 3))


def on_canvas(image: np.ndarray) -> jax.Array:
    """Put a square image on a canvas of other pixels, which nothing may read."""
    rows, columns = (CANVAS - side for side in image.shape[:2])
    padding = ((0, rows), (0, columns), (0, 0))
    return jnp.asarray(np.pad(image, padding, constant_values=7.0), jnp.float32)


@pytest.fixture(scope="module")
def counts():
    return jnp.asarray(packed_tables())


# One step at a time


@pytest.mark.parametrize("case", range(3))
def test_kernels_equal_goldens(case):
    size, *sigmas, theta = (float(x) for x in GOLDEN[f"kernel/{case}/params"])
    shapes = {
        "iso": (sigmas[0], sigmas[0], 0.0, 1.0, False),
        "aniso": (*sigmas, theta, 1.0, False),
        "generalized_aniso/beta0.6": (*sigmas, theta, 0.6, False),
        "generalized_aniso/beta3.1": (*sigmas, theta, 3.1, False),
        "plateau_aniso/beta0.6": (*sigmas, theta, 0.6, True),
        "plateau_aniso/beta3.1": (*sigmas, theta, 3.1, True),
    }
    margin = (21 - int(size)) // 2
    for name, arguments in shapes.items():
        actual = device.bell_kernel(21, jnp.int32(size), *map(jnp.asarray, arguments))
        expected = np.pad(GOLDEN[f"kernel/{case}/{name}"], margin)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    cutoff, size = GOLDEN[f"sinc/{case}/params"]
    actual = device.sinc_kernel(21, jnp.int32(size), jnp.float32(cutoff))
    np.testing.assert_allclose(actual, GOLDEN[f"sinc/{case}/kernel"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", range(2))
def test_blur_equals_golden(case):
    kernel = jnp.asarray(GOLDEN["blur/kernels"][case])
    actual = device.blur(on_canvas(IMAGES[case]), jnp.int32(128), kernel)[:128, :128]
    np.testing.assert_allclose(actual[..., 1], GOLDEN["blur/out"][case, 0], rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_blur_reflects_images_smaller_than_the_kernel_as_often_as_the_host_does(size):
    image, kernel = IMAGES[0, :size, :size], GOLDEN["blur/kernels"][0]
    actual = device.blur(on_canvas(image), jnp.int32(size), jnp.asarray(kernel))[:size, :size]
    expected = host.blur(np.ascontiguousarray(image), kernel.astype(np.float64))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("resize/")])
def test_resize_equals_golden(name):
    _, target, mode = name.split("/")
    if target.startswith("scale"):
        factor = jnp.float32(target.removeprefix("scale"))
        sides = 2 * [(device.scaled(128, factor, 999), 1 / factor)]
    else:
        sides = [(jnp.int32(side), jnp.float32(128 / int(side))) for side in target[4:].split("x")]
    rows, columns = (
        device.interpolation(jnp.int32(128), new, step, jnp.int32(WAYS[mode]), CANVAS, 180)
        for new, step in sides
    )
    resized = jnp.einsum("ij,jk,lk->il", rows, on_canvas(IMAGES[0])[..., 1], columns)
    expected = GOLDEN[name][0, 0]  # the green channel, its last 48 rows at most
    actual = np.asarray(resized)[: int(sides[0][0]), : int(sides[1][0])][-48:]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_resize_goes_both_ways():
    image, size = on_canvas(IMAGES[0]), jnp.int32(128)
    way = jnp.int32(device.AREA)
    actual = device.resize(image, size, jnp.int32(32), jnp.float32(4), way, 40)[:32, :32]
    expected = IMAGES[0].reshape(32, 4, 32, 4, 3).mean((1, 3))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(2))
def test_jpeg_equals_golden(case):
    """What is cut off below 90 pixels is cut at the end of a block here, where there is more."""
    quality = float(GOLDEN["jpeg/quality"][case])
    image = on_canvas(IMAGES[case, :90, :90])
    actual = device.random_jpeg(jnp.float32(0.5), image, jnp.int32(90), (quality, quality))
    expected = nhwc(GOLDEN["jpeg/out"])[case]
    np.testing.assert_allclose(actual[:80, :90], expected[:80], rtol=0, atol=2e-6)


def test_gaussian_noise_is_as_strong_as_it_should_be_and_gray_as_often(counts):
    image = jnp.full((24, 24, 3), 0.5)

    @jax.jit
    @jax.vmap
    def noisy(key, numbers):
        draws, size = iter(numbers), jnp.int32(24)
        return device.random_noise(
            *(counts, key, draws, draws, image, size), 1.0, (12.0, 12.0), (1.0, 1.0), gray_prob=0.4
        )

    noise = 255 * (np.asarray(noisy(KEYS[:500], NUMBERS[:500])) - 0.5)
    gray = (np.ptp(noise, axis=-1) < 1e-4).all(axis=(1, 2))
    assert_frequency(gray, 0.4, 500)
    for kind in (noise[gray, ..., :1], noise[~gray]):
        assert kind.std() == pytest.approx(12, rel=0.01)
        assert abs(kind.mean()) < 4 * 12 / np.sqrt(kind.size)
    one, other = noise[~gray, ..., 0].ravel(), noise[~gray, ..., 2].ravel()
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(one.size)


def test_packed_tables_hold_the_poisson_distribution_of_every_level(counts):
    entry = packed_tables()[[0, 4, 8]]
    own = np.arange(BINS)
    chance, other = entry % 2**CHANCE_BITS / 2**CHANCE_BITS, entry >> CHANCE_BITS
    probabilities = chance.copy()
    index = np.ogrid[:3, :256, :0][:2]
    np.add.at(probabilities, (*index, other), 1 - chance)
    mean = np.array([1, 16, 256])[:, None, None] * np.arange(256)[:, None] / 255
    expected = scipy.stats.poisson.pmf(own, mean)
    np.testing.assert_allclose(probabilities / BINS, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", range(2))
def test_poisson_noise_has_the_goldens_deviation(counts, case):
    noise_fn = jax.vmap(partial(device.poisson_noise, counts), (0, None, None))
    image = jnp.asarray(IMAGES[case])
    noise = np.asarray(noise_fn(KEYS[:100], image, jnp.int32(128)))
    deviation = GOLDEN["poisson/scale"][case] * noise.std(axis=0, ddof=1).mean()
    assert deviation == pytest.approx(GOLDEN["poisson/noise_std_mean"][case], rel=4e-3)
    assert abs(noise.mean()) < 4 * noise.std() / np.sqrt(noise.size)


@pytest.mark.parametrize(("distinct", "photons"), [(1, 1), (5, 8), (8, 8), (256, 256)])
def test_poisson_noise_counts_photons(counts, distinct, photons):
    levels = np.linspace(0, 255, distinct).round().astype(np.uint8) if distinct > 1 else [255]
    image = host.to_unit(np.resize(np.array(levels, np.uint8), (64, 64, 3)))
    canvas = np.pad(image, ((0, 6), (0, 6), (0, 0)), constant_values=0.1)  # another level
    noise = device.poisson_noise(counts, KEYS[0], jnp.asarray(canvas), jnp.int32(64))
    drawn = (np.asarray(noise)[:64, :64] + image) * photons
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-4)
    assert set(np.unique(drawn.round()) % 2) == {0, 1}  # so of no fewer photons


# Draws


def test_draws_are_those_of_the_host():
    sizes = np.asarray(jax.vmap(lambda row: device.random_odd(row[0], (3, 19)))(NUMBERS))
    assert set(sizes) == {*range(3, 20, 2)}
    for size in range(3, 21, 2):
        assert_frequency(sizes == size, 1 / 9)
    factor_fn = jax.vmap(lambda row: device.random_factor(iter(row), 0.2, 0.7, (0.15, 1.5)))
    factors = np.asarray(factor_fn(NUMBERS))
    assert_frequency(factors > 1, 0.2)
    assert_frequency(factors < 1, 0.7)
    assert_uniform(factors[factors > 1], 1, 1.5)
    assert_uniform(factors[factors < 1], 0.15, 1)
    betas = np.asarray(jax.vmap(lambda row: device.random_beta(iter(row), (0.5, 4.0)))(NUMBERS))
    assert_frequency(betas < 1, 0.5)
    assert_uniform(betas[betas < 1], 0.5, 1)
    assert_uniform(betas[betas > 1], 1, 4)
    ways = np.asarray(jax.vmap(device.random_way)(NUMBERS[:, 0]))
    for way in WAYS.values():
        assert_frequency(ways == way, 1 / 3)


# The whole


@pytest.fixture(scope="module")
def config():
    config = released_x4.get_config()
    config.data.crop_size = 64
    return config


def test_what_a_batch_shares_is_drawn_from_the_shared_keys(config, counts):
    """With next to no noise and blur, images of one shared key are scaled alike."""
    settings = config.degradation.to_dict() | {"second": None}
    settings["first"]["blur"]["prob"] = 0.0
    settings["first"]["noise"] |= dict(sigma=(0.0, 0.0), poisson_scale=(0.0, 0.0))
    settings["first"]["jpeg_quality"] = settings["final"]["jpeg_quality"] = (99, 99)
    settings["final"]["sinc"]["prob"] = 0.0
    settings.pop("simulated_jpeg")
    degrade = jax.jit(partial(device.degrade_batch, counts, **settings, at_once=2))
    hr = jnp.asarray(np.stack(4 * [BYTES[0, :64, :64]]))
    lr = np.asarray(degrade(KEYS[:4], KEYS[jnp.array([0, 0, 1, 1])], hr)).astype(int)
    alike = [np.abs(lr[i] - lr[i + 1]).mean() for i in (0, 2)]
    assert max(alike) < 0.5 < np.abs(lr[0] - lr[2]).mean()


def test_the_distribution_is_the_hosts(config):
    """The script says the same of 2,000 images; here the seeds are fixed, so that luck is."""
    of_device = measure(*degrade_on_device(config, 200))
    of_host = measure(*degrade_on_host(config, 200))
    assert min(compare(of_host, of_device).values()) > 0.01
    config = config.copy_and_resolve_references()
    config.degradation = imagenet_test()
    p = compare(measure(*degrade_on_host(config, 200)), of_device)
    assert max(p["PSNR to bicubic"], p["noise level"]) < 1e-6  # of another setting
