import numpy as np
import pytest
from golden import golden

from upsr_jax.data.degradation.kernels import (
    gaussian_kernel,
    generalized_gaussian_kernel,
    plateau_kernel,
    quadratic_form,
    sinc_kernel,
)

GOLDEN = golden("degradation")


@pytest.mark.parametrize("case", range(3))
def test_bells_equal_goldens(case):
    size, sigma_x, sigma_y, theta = GOLDEN[f"kernel/{case}/params"]
    round_q = quadratic_form(int(size), sigma_x, sigma_x, 0.0)
    q = quadratic_form(int(size), sigma_x, sigma_y, theta)
    actual = {
        "iso": gaussian_kernel(round_q),
        "aniso": gaussian_kernel(q),
        "generalized_aniso/beta0.6": generalized_gaussian_kernel(q, 0.6),
        "generalized_aniso/beta3.1": generalized_gaussian_kernel(q, 3.1),
        "plateau_aniso/beta0.6": plateau_kernel(q, 0.6),
        "plateau_aniso/beta3.1": plateau_kernel(q, 3.1),
    }
    for name, kernel in actual.items():
        np.testing.assert_allclose(kernel, GOLDEN[f"kernel/{case}/{name}"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", range(3))
def test_sinc_equals_golden(case):
    cutoff, size = GOLDEN[f"sinc/{case}/params"]
    expected = GOLDEN[f"sinc/{case}/kernel"]  # on a canvas of 21
    kernel = np.pad(sinc_kernel(int(size), cutoff), (len(expected) - int(size)) // 2)
    np.testing.assert_allclose(kernel, expected, rtol=0, atol=1e-14)


def test_theta_turns_the_long_axis_from_x_to_y():
    q = quadratic_form(9, 3.0, 1.0, 0.0)
    turned = quadratic_form(9, 3.0, 1.0, np.pi / 2)
    np.testing.assert_allclose(turned, q.T, atol=1e-12)
    assert q[4, 8] == pytest.approx((4 / 3) ** 2)
    assert q[8, 4] == pytest.approx(4**2)
