import cv2
import numpy as np
import pytest
from golden import golden, nhwc

from upsr_jax.data.degradation.jpeg import simulate_jpeg

GOLDEN = golden("degradation")
IMAGES = nhwc(GOLDEN["blur/image"][..., :100, :90]) / 255


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_golden(dtype):
    qualities, expected = GOLDEN["jpeg/quality"].tolist(), nhwc(GOLDEN["jpeg/out"])
    for image, quality, out in zip(IMAGES.astype(dtype), qualities, expected, strict=True):
        actual = simulate_jpeg(image, quality)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, out, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quality", [30.0, 60.0, 95.0])
def test_loses_about_as_much_as_libjpeg(quality):
    image = (IMAGES[0, :96, :80] * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    real = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)) / 255
    simulated = simulate_jpeg((image / 255).astype(np.float32), quality)
    expected = np.square(real - image / 255).mean()
    assert np.square(simulated - image / 255).mean() == pytest.approx(expected, rel=0.1)
