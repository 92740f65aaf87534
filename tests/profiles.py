"""ICC profiles of other colour spaces, and what their colours are in sRGB, in closed form."""

import struct

import numpy as np
from PIL import ImageCms

# Of each primary X, Y, Z, adapted to D50 as profiles store them
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
PROPHOTO = ((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))


def _fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(65536 * x) for x in numbers))


def _curve(gamma: float) -> bytes:
    return struct.pack(">4sIIHxx", b"curv", 0, 1, round(256 * gamma))


def rgb_profile(primaries=SRGB, gamma: float | None = None) -> bytes:
    """Build the profile of an RGB space, of sRGB's tone curve unless a power is given."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        signature, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if signature in (b"rXYZ", b"gXYZ", b"bXYZ"):
            data = _fixed(*primaries[b"rgb".index(signature[0])])
            profile[offset + 8 : offset + 20] = data
        elif signature[1:] == b"TRC" and gamma:
            profile[offset : offset + 16] = _curve(gamma)
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """Build the profile of a grey space (ICC.1:2001-04)."""
    d50 = _fixed(0.9642, 1.0, 0.8249)
    white, curve = struct.pack(">4sI", b"XYZ ", 0) + d50, _curve(gamma)
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII", 2, b"wtpt", start, len(white))
    tags += struct.pack(">4sII", b"kTRC", start + len(white), len(curve))
    size = start + len(white) + len(curve)
    header = struct.pack(">IIIII4s", size, 0, 0x02400000, 0, 0, b"")[:12] + b"mntrGRAYXYZ "
    header += bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48)
    assert len(header) == 128
    return header + tags + white + curve


def srgb_of(pixels: np.ndarray, primaries=SRGB, gamma: float | None = None) -> np.ndarray:
    """Say which 8-bit sRGB pixels, not rounded, those of an RGB space are: IEC 61966-2-1."""
    x = pixels / 255
    linear = x**gamma if gamma else np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    linear = linear @ np.array(primaries) @ np.linalg.inv(SRGB)
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
