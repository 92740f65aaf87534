"""LPIPS: VGG against PyTorch's value and gradient on seeded weights, AlexNet against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, nhwc, relative_error, weights

from upsr_jax.convert import lpips_from_torch
from upsr_jax.models.build import apply
from upsr_jax.models.lpips import ALEXNET, LPIPS, VGG16, min_side
from upsr_jax.weights.published import load_lpips_alex


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
        x = np.broadcast_to(np.array([-0.030, -0.088, -0.188], np.float32), size)  # normalized to 0
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


def windows(x: np.ndarray, size: int, step: int) -> np.ndarray:
    """List the windows of an image [h, w, c] as [h2, w2, c, size, size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))[::step, ::step]


def alexnet_features(x: np.ndarray, params: dict) -> list[np.ndarray]:
    """Compute the five feature maps of one signed image, as torchvision's table of layers says."""
    x = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    outputs = []
    for stage, (step, pad, pooled) in enumerate(
        [(4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False)], 1
    ):
        if pooled:
            x = windows(x, 3, 2).max(axis=(3, 4))
        layer = params[f"conv{stage}_1"]
        padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
        patches = windows(padded, len(layer["kernel"]), step)
        x = np.maximum(np.einsum("hwcij,ijcf->hwf", patches, layer["kernel"]) + layer["bias"], 0)
        outputs.append(x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
    return outputs


def test_alexnet_is_numpy_s():
    params = load_lpips_alex()
    a, b = np.random.default_rng(3).uniform(-1, 1, (2, 47, 39, 3))
    stages = zip(alexnet_features(a, params), alexnet_features(b, params), strict=True)
    expected = sum(
        np.mean((x - y) ** 2 @ params[f"head_{i}"]) for i, (x, y) in enumerate(stages, 1)
    )
    images = (jnp.asarray(x[None], jnp.float32) for x in (a, b))
    found = apply(LPIPS(ALEXNET), params, *images)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("backbone", [VGG16, ALEXNET])
def test_images_on_a_canvas_have_the_distance_they_have_alone(backbone):
    """What lies beside them may be anything, even not a number; the others are too small."""
    lpips = LPIPS(
        tuple(
            stage._replace(convs=tuple(conv._replace(width=8) for conv in stage.convs))
            for stage in backbone
        )
    )
    side = min_side(backbone)
    image = jnp.zeros((1, side, side, 3))
    shapes = jax.eval_shape(lpips.init, jax.random.key(0), image, image)
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda leaf: rng.uniform(-0.2, 0.3, leaf.shape), shapes)
    height, width = side + 13, side + 2
    image, reference = jnp.asarray(rng.uniform(-1, 1, (2, 1, height, width, 3)), jnp.float32)

    def on_canvas(x):
        margins = ((0, 2), (0, 3), (0, 19), (0, 0))
        return jnp.pad(x, margins, constant_values=jnp.nan)

    measure = jax.jit(lpips.apply)
    (expected,) = measure(params, image, reference)
    assert expected > 0.01
    sizes = jnp.array([[height, width], [height, side - 1], [1, 1]])
    found = measure(params, on_canvas(image), on_canvas(reference), sizes)
    np.testing.assert_allclose(found, [expected, np.nan, np.nan], rtol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "limit", "size"),
    [(VGG16, 16, (15, 16)), (VGG16, 16, (16, 8)), (ALEXNET, 31, (30, 64))],
)
def test_small_images_are_refused(backbone, limit, size):
    image = jnp.zeros((1, *size, 3))
    message = rf"at least {limit} pixels, not \({size[0]}, {size[1]}\)"
    with pytest.raises(ValueError, match=message):
        LPIPS(backbone).init(jax.random.key(0), image, image)
