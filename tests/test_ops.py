"""Array operations against PyTorch goldens and their defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, nhwc

from upsr_jax import ops
from upsr_jax.ops import pixel_shuffle, pixel_unshuffle

bicubic_upsample = jax.jit(ops.bicubic_upsample)


def test_bicubic_matches_pytorch():
    file = golden("bicubic_x4")
    with jax.enable_x64(True):
        image = jnp.asarray(nhwc(file["image"] / 255.0))
        out = np.asarray(bicubic_upsample(image))
    expected = nhwc(file["out"])
    assert np.linalg.norm(out - expected) < 1e-7 * np.linalg.norm(expected)


def test_bicubic_has_the_closed_form_of_its_kernel_on_a_ramp():
    # Cubic convolution is a Hermite spline with -2a = 1.5 times the true slopes, which adds
    # (1.5 - 1) t (1 - t) (1 - 2t) to a straight line.
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 3, 8, 1))
    out = bicubic_upsample(ramp)[0, 5, :, 0]
    position = (np.arange(32) + 0.5) / 4 - 0.5
    t = position % 1
    error = out - position - 0.5 * t * (1 - t) * (1 - 2 * t)
    np.testing.assert_allclose(error[10:22], 0, atol=1e-6)


def test_bicubic_keeps_a_constant_up_to_the_edge():
    flat = bicubic_upsample(jnp.full((1, 2, 3, 1), 0.3))
    np.testing.assert_allclose(flat, 0.3, rtol=1e-6)


def test_bicubic_reads_two_pixels_each_way():
    impulse = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(1.0)
    rows = np.flatnonzero(np.asarray(bicubic_upsample(impulse)).any(axis=(0, 2, 3)))
    assert (rows.min(), rows.max()) == (16 - 6, 16 + 9)


def test_bicubic_of_half_precision_is_float32():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3), jnp.bfloat16)
    out = bicubic_upsample(x)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, bicubic_upsample(x.astype(jnp.float32)))


def test_pixel_unshuffle_matches_pytorch_and_shuffle_inverts_it():
    file = golden("diffusion")
    image = jnp.asarray(nhwc(file["gt"][:1]))
    unshuffled = pixel_unshuffle(image)
    expected = nhwc(file["unshuffled_gt"])
    np.testing.assert_array_equal(unshuffled, expected)
    np.testing.assert_array_equal(pixel_shuffle(unshuffled), image)


def test_pixel_unshuffle_takes_other_factors():
    x = jnp.arange(2 * 4 * 6).reshape(1, 4, 6, 2).astype(jnp.float32)
    out = pixel_unshuffle(x, factor=2)
    assert out.shape == (1, 2, 3, 8)
    np.testing.assert_array_equal(out[0, 1, 2, 4:], x[0, 2:4, 4:6, 1].ravel())


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"30x32.*multiples of 4"):
        pixel_unshuffle(jnp.zeros((1, 30, 32, 3)))
    with pytest.raises(ValueError, match=r"20 channels.*16"):
        pixel_shuffle(jnp.zeros((1, 2, 2, 20)))
