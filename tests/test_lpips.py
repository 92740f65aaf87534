"""LPIPS-VGG against PyTorch's value and gradient, on seeded weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, nhwc, relative_error, weights

from upsr_jax.convert import lpips_from_torch
from upsr_jax.models.lpips import LPIPS
from upsr_jax.networks import apply


@pytest.fixture(scope="module")
def params():
    """The golden's weights, float64: kernels and heads scaled so that all stages have a say."""

    def scaled(name: str, array: np.ndarray) -> np.ndarray:
        if name.startswith("lin"):
            return np.abs(array)
        return array * np.sqrt(2) if name.endswith(".weight") else array

    return lpips_from_torch({name: scaled(name, x) for name, x in weights("lpips_vgg").items()})


def float32(params: dict) -> dict:
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), params)


@jax.jit
def total_and_gradient(params: dict, image: jax.Array, reference: jax.Array):
    """Sum the distances of a batch, and differentiate by the image."""
    return jax.value_and_grad(lambda image: apply(LPIPS(), params, image, reference).sum())(image)


def test_value_and_gradient_are_pytorchs(params):
    expected = golden("lpips_vgg")
    image, reference = nhwc(expected["image"]), nhwc(expected["reference"])

    def total(image, reference, params):
        distances = apply(LPIPS(), params, image, reference)
        return distances.sum(), distances

    with jax.enable_x64(True):
        gradient, distances = jax.jit(jax.grad(total, has_aux=True))(image, reference, params)
    assert distances.dtype == gradient.dtype == np.float64
    assert relative_error(distances, expected["lpips"]) < 1e-7
    assert relative_error(gradient, nhwc(expected["grad"])) < 1e-6


@pytest.mark.parametrize("image", ["photo", "black"])
def test_equal_images_have_no_distance_and_a_finite_gradient(params, image):
    """A network without biases gives a black image features that are all zero."""
    size = (1, 16, 16, 3)
    if image == "photo":
        x = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    else:
        params = {
            name: layer | {"bias": np.zeros_like(layer["bias"])} if "conv" in name else layer
            for name, layer in params.items()
        }
        x = np.broadcast_to(np.float32([-0.030, -0.088, -0.188]), size)  # normalized to 0
    value, gradient = total_and_gradient(float32(params), x, x)
    assert abs(value) < 1e-10
    assert np.isfinite(gradient).all()


def test_bfloat16_stays_near_float32(params):
    images = (nhwc(golden("lpips_vgg")[name]) for name in ("image", "reference"))
    images = [jnp.asarray(image, jnp.float32)[:, :32, :32] for image in images]
    exact, rounded = (
        jax.jit(LPIPS(dtype=dtype).apply)({"params": float32(params)}, *images)
        for dtype in (None, jnp.bfloat16)
    )
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-5 < relative_error(rounded, exact) < 0.05


@pytest.mark.parametrize("size", [(15, 16), (16, 8)])
def test_small_images_are_refused(size):
    image = jnp.zeros((1, *size, 3))
    with pytest.raises(ValueError, match=rf"at least 16 pixels, not \({size[0]}, {size[1]}\)"):
        LPIPS().init(jax.random.key(0), image, image)
