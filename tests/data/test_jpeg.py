import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import golden, nhwc

from upsr_jax.data.degradation.jpeg import simulate_jpeg

GOLDEN = golden("degradation")
IMAGES = nhwc(GOLDEN["blur/image"][..., :100, :90]) / 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_golden(dtype):
    with jax.enable_x64(dtype == np.float64):
        quality = jnp.asarray(GOLDEN["jpeg/quality"], dtype)
        actual = jax.jit(simulate_jpeg)(jnp.asarray(IMAGES, dtype), quality)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, nhwc(GOLDEN["jpeg/out"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_loses_about_as_much_as_libjpeg(quality):
    image = (IMAGES[0, :96, :80] * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    real = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)) / 255
    unit = jnp.asarray(image[np.newaxis] / 255, jnp.float32)
    simulated = simulate_jpeg(unit, jnp.asarray([quality], jnp.float32))
    expected = np.square(real - image / 255).mean()
    assert np.square(simulated[0] - image / 255).mean() == pytest.approx(expected, rel=0.1)
