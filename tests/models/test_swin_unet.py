"""The denoiser against PyTorch goldens, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict
from golden import (
    golden,
    manifest,
    nhwc,
    relative_error,
    seeded,
    thin_gradient,
    thin_image,
    weights,
)
from tiny_model import draw

from configs import realsr_x4, tiny
from upsr_jax.convert import denoiser_from_torch, denoiser_to_torch
from upsr_jax.models.build import apply, init_denoiser
from upsr_jax.models.swin_unet import SwinUNet, keep_colours

TINY = tiny.get_config().model.to_dict()
RELEASED = realsr_x4.get_config().model.to_dict()
SMALL = {**TINY, "multipliers": (1,), "num_res_blocks": (1,)}
CONFIGS = {"unet_tiny": TINY, "unet_realsr_x4": RELEASED}


def seeded_inputs(batch: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a golden's state and condition."""
    shapes = {"x": (batch, 48, height, width), "condition": (batch, 96, height, width)}
    x, condition = (nhwc(seeded(name, shape)) for name, shape in shapes.items())
    return x, condition


@pytest.fixture(scope="module")
def small():
    """Params, inputs and output of a network that compiles fast, in float32."""
    params = draw(init_denoiser, SMALL)
    x, condition = (array.astype(np.float32) for array in seeded_inputs(1, 16, 16))
    inputs = ({"params": params}, x, np.array([2], np.int32), condition)
    return inputs, jax.jit(SwinUNet(**SMALL).apply)(*inputs)


@pytest.fixture(scope="module")
def released_params():
    """The seeded network of the released size in float64: 0.95 GB."""
    return denoiser_from_torch(weights("unet_realsr_x4"), RELEASED)


@pytest.mark.parametrize("size", [(32, 96), (64, 64)])
def test_output_is_pytorchs(size):
    expected = golden(f"unet_tiny_{size[0]}x{size[1]}")
    x, condition = seeded_inputs(len(expected["t"]), *size)
    with jax.enable_x64(True):
        params = denoiser_from_torch(weights("unet_tiny"), TINY)
        out = jax.jit(SwinUNet(**TINY).apply)({"params": params}, x, expected["t"], condition)
    assert out.dtype == np.float64
    assert relative_error(thin_image(out), nhwc(expected["out"])) < 1e-7


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-7), (np.float32, 1e-5)])
def test_output_of_the_released_size_is_pytorchs(released_params, dtype, tolerance):
    expected = golden("unet_realsr_x4")
    with jax.enable_x64(dtype == np.float64):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), released_params)
        x, condition = (array.astype(dtype) for array in seeded_inputs(1, 64, 64))
        t = expected["t"].astype(np.int32)
        out = jax.jit(SwinUNet(**RELEASED).apply)({"params": params}, x, t, condition)
    assert out.dtype == dtype
    assert relative_error(thin_image(out), nhwc(expected["out"])) < tolerance


def test_gradients_are_pytorchs():
    expected = golden("unet_tiny_gradients")
    x, condition = seeded_inputs(2, 32, 32)
    target = nhwc(seeded("target", (2, 3, 128, 128)))

    def mean_squared_error(params, *inputs):
        return jnp.mean((apply(SwinUNet(**TINY), params, *inputs) - target) ** 2)

    with jax.enable_x64(True):
        params = denoiser_from_torch(weights("unet_tiny"), TINY)
        loss, gradients = jax.jit(jax.value_and_grad(mean_squared_error))(
            params, x, expected["t"], condition
        )
    assert loss == pytest.approx(float(expected["loss"]), rel=1e-7)
    gradients = denoiser_to_torch(gradients, TINY)
    for entry in manifest("unet_tiny"):
        if entry["kind"] == "parameter":
            name = entry["name"]
            norm = np.linalg.norm(gradients[name])
            # A bias in front of a group norm changes next to nothing: its gradient is rounding.
            assert norm == pytest.approx(
                float(expected[f"grad_norm/{name}"]), rel=1e-6, abs=1e-14
            ), name
    whole = [key.removeprefix("grad/") for key in expected if key.startswith("grad/")]
    assert len(whole) == 35
    for name in whole:
        found = thin_gradient(gradients[name])
        assert relative_error(found, expected[f"grad/{name}"]) < 1e-6, name


@pytest.mark.parametrize("network", CONFIGS)
def test_number_of_parameters(network):
    shapes = jax.eval_shape(lambda key: init_denoiser(key, CONFIGS[network]), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == sum(
        np.prod(entry["shape"]) for entry in manifest(network) if entry["kind"] == "parameter"
    )
    assert network == "unet_tiny" or count == 119_418_319


def test_initial_values_are_pytorchs():
    key = jax.random.key(0, impl="rbg")  # compiles in half the time
    params = jax.jit(lambda key: init_denoiser(key, {**SMALL, "swin_depth": 1}))(key)
    flat = {name: np.asarray(leaf) for name, leaf in flatten_dict(params, sep="/").items()}
    assert {leaf.dtype for leaf in flat.values()} == {np.dtype(np.float32)}
    second_convs = [name for name in flat if "/conv_out/" in name]
    tables = [name for name in flat if name.endswith("relative_position_bias")]
    norms = [name for name in flat if "norm" in name]
    assert len(second_convs) == 2 * 5  # of one block down, two in the middle, two up
    assert len(tables) == 3
    assert all(np.all(flat[name] == 0) for name in second_convs)
    assert all(np.all(flat[name] == name.endswith("scale")) for name in norms)
    for name in tables:
        assert 0.015 < flat[name].std() < 0.025
    for name in flat.keys() - {*second_convs, *tables, *norms}:
        kernel = flat[name.rsplit("/", 1)[0] + "/kernel"]
        bound = np.prod(kernel.shape[:-1]) ** -0.5  # 1/sqrt(fan_in)
        largest = np.abs(flat[name]).max()
        assert largest <= bound, name
        assert largest > 0.9 * bound or flat[name].size < 64, name


def test_bfloat16_stays_near_float32(small):
    inputs, exact = small
    rounded = jax.jit(SwinUNet(**SMALL, dtype=jnp.bfloat16).apply)(*inputs)
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-4 < relative_error(rounded, exact) < 0.05
    assert np.mean(rounded != rounded.astype(jnp.bfloat16)) > 0.9  # not that of the image


def test_residual_adds_the_estimate_and_keeps_the_bicubics_colours(small):
    inputs, plain = small
    residual = jax.jit(SwinUNet(**{**SMALL, "residual": True}).apply)(*inputs)
    estimate, bicubic = rearrange(
        jnp.asarray(inputs[-1]), "b h w (n c row col) -> n b (h row) (w col) c", n=2, row=4, col=4
    )
    np.testing.assert_allclose(residual, keep_colours(plain + estimate, bicubic), atol=1e-5)


def test_a_tint_goes_and_detail_stays():
    rng = np.random.default_rng(0)
    bicubic = 0.3 * rng.uniform(-1, 1, (1, 64, 96, 3)).astype(np.float32)
    pixels = np.indices((64, 96)).sum(0)[None, ..., None] % 2
    detail = np.float32(0.2) * (2 * pixels - 1)
    tint = np.array([0.05, -0.1, 0.2], np.float32)
    shifted = keep_colours(jnp.asarray(bicubic + detail + tint), jnp.asarray(bicubic))
    np.testing.assert_allclose(shifted, bicubic + detail, atol=1e-5)


def test_means_over_the_picture_are_the_bicubics_where_both_are_clipped():
    rng = np.random.default_rng(0)
    bicubic = rng.uniform(-1.2, 1.2, (1, 128, 128, 3)).astype(np.float32)
    image = bicubic + np.linspace(-0.2, 0.3, 128, dtype=np.float32)[:, None]
    shifted = keep_colours(jnp.asarray(image), jnp.asarray(bicubic))
    before, after = (
        np.abs((np.clip(x, -1, 1) - np.clip(bicubic, -1, 1)).mean((0, 1, 2))).max()
        for x in (image, shifted)
    )
    assert before > 0.03 > 2 / 255 > after


def test_a_networks_tint_changes_nothing_even_where_pixels_are_clipped():
    rng = np.random.default_rng(0)
    bicubic = rng.uniform(-1.2, 1.2, (1, 64, 64, 3)).astype(np.float32)
    image = bicubic + rng.normal(0, 0.3, bicubic.shape).astype(np.float32)
    assert (np.abs(image) > 1).mean() > 0.2
    tint = np.array([5, -0.5, 0.1], np.float32)
    tinted, untinted = (
        keep_colours(jnp.asarray(x), jnp.asarray(bicubic)) for x in (image + tint, image)
    )
    np.testing.assert_allclose(tinted, untinted, atol=1e-5)


def test_pixels_beyond_white_learn_to_come_back_and_to_go_no_further():
    bicubic = jnp.zeros((1, 64, 64, 3))
    image = bicubic.at[0, 32, 32].set(1.5).at[0, 8, 8].set(-1.5)
    gradient = jax.grad(lambda x: keep_colours(x, bicubic)[0, [32, 8], [32, 8], 0].sum())(image)
    # A step against it darkens both.
    assert gradient[0, 32, 32, 0] > 0.9
    assert abs(gradient[0, 8, 8, 0]) < 0.01


@pytest.mark.parametrize("size", [(24, 16), (16, 8), (63, 64)])
def test_unfit_sizes_are_refused(size):
    x, condition = jnp.zeros((1, *size, 48)), jnp.zeros((1, *size, 96))
    with pytest.raises(ValueError, match=rf"multiples of 16 .*not {size[0]}x{size[1]}"):
        SwinUNet(**TINY).init(jax.random.key(0), x, jnp.zeros(1, jnp.int32), condition)
