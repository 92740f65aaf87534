"""Blur kernels of the Real-ESRGAN degradation (arXiv 2107.10833, Sec. 3.2 and 3.4), in float64.

Kernels are square, of odd size, and sum to 1. `q` is the quadratic form zᵀΣ⁻¹z of the pixel
offset z = (x, y) from the centre.
"""

import numpy as np
from jaxtyping import Float64
from scipy.special import j1

Kernel = Float64[np.ndarray, "size size"]


def quadratic_form(size: int, sigma_x: float, sigma_y: float, theta: float) -> Kernel:
    """Compute q for two standard deviations, in pixels, along axes turned by `theta` radians."""
    x, y = _offsets(size)
    along = (x * np.cos(theta) + y * np.sin(theta)) / sigma_x
    across = (y * np.cos(theta) - x * np.sin(theta)) / sigma_y
    return along**2 + across**2


def gaussian_kernel(q: Kernel) -> Kernel:
    """Compute exp(-q/2)."""
    return _normalize(np.exp(-q / 2))


def generalized_gaussian_kernel(q: Kernel, beta: float) -> Kernel:
    """Compute exp(-q^beta/2): more pointed than a Gaussian for beta < 1, flatter for beta > 1."""
    return _normalize(np.exp(-(q**beta) / 2))


def plateau_kernel(q: Kernel, beta: float) -> Kernel:
    """Compute 1 / (1 + q^beta)."""
    return _normalize(1 / (1 + q**beta))


def sinc_kernel(size: int, cutoff: float) -> Kernel:
    """Compute the circular low-pass filter of a cutoff in radians a pixel (Sec. 3.4, Eq. 6)."""
    r = np.hypot(*_offsets(size))
    centre = r == 0
    r[centre] = 1  # any value: the centre is a limit, c²/4π
    kernel = np.where(centre, cutoff**2 / (4 * np.pi), cutoff * j1(cutoff * r) / (2 * np.pi * r))
    return _normalize(kernel)


def _offsets(size: int) -> tuple[Kernel, Kernel]:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return x, y


def _normalize(kernel: Kernel) -> Kernel:
    return kernel / kernel.sum()
