"""Colour profiles: which pixels keep theirs, and how the others become sRGB."""

import io
import struct
from functools import cache

import numpy as np
from jaxtyping import UInt16
from PIL import Image, ImageCms

# As close to what the profile says as it gets, instead of a table of it
EXACT = ImageCms.Flags.NOOPTIMIZE


def own_profile(profile: bytes | None, mode: str) -> bytes:
    """Return the profile of an image of a mode if its pixels are to keep it: RGB other than sRGB.

    Else it is b"". One that is damaged or meant for other channels is none: viewers show such a
    picture as sRGB.
    """
    if not profile or mode not in ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr"):
        return b""
    samples = np.moveaxis(np.mgrid[:256:15, :256:15, :256:15], 0, -1).astype(np.uint8)
    cube = Image.fromarray(samples.reshape(18, -1, 3))
    transform = make_transform(profile, "RGB", "RGB")
    if transform is None:
        return b""
    change = np.asarray(transform.apply(cube)).astype(int) - np.asarray(cube)
    return profile if np.abs(change).max() > 1 else b""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB to sRGB, by its profile if it has one."""
    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    transform = make_transform(profile, image.mode, "RGB") if profile else None
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply(image)


def grey_to_srgb(pixels: UInt16[np.ndarray, "h w"], profile: bytes) -> UInt16[np.ndarray, "h w"]:
    """Convert 16-bit grey of a grey profile to sRGB's grey; any other profile changes nothing."""
    try:
        source, target = io.BytesIO(profile), io.BytesIO(grey_srgb())
        transform = ImageCms.buildTransform(source, target, "I;16", "I;16", flags=EXACT)
    except ImageCms.PyCMSError:
        return pixels
    return np.asarray(transform.apply(Image.fromarray(pixels)))


def make_transform(profile: bytes, mode: str, to: str) -> ImageCms.ImageCmsTransform | None:
    """Build the way from a profile to sRGB; None if that is damaged, or not of this mode."""
    try:
        target = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(io.BytesIO(profile), target, mode, to)
    except ImageCms.PyCMSError:
        return None


@cache
def grey_srgb() -> bytes:
    """Build the profile of grey with sRGB's tone curve (ICC.1:2022 and IEC 61966-2-1)."""
    d50 = struct.pack(">3i", *(round(65536 * x) for x in (0.9642, 1.0, 0.8249)))
    white = struct.pack(">4sI", b"XYZ ", 0) + d50
    numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = struct.pack(">4sIHxx5i", b"para", 0, 3, *(round(65536 * x) for x in numbers))
    start = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII", 2, b"wtpt", start, len(white))
    tags += struct.pack(">4sII", b"kTRC", start + len(white), len(curve))
    size = start + len(white) + len(curve)
    header = struct.pack(">IIII", size, 0, 0x04300000, 0)[:12] + b"mntrGRAYXYZ "
    header += bytes(12) + b"acsp" + bytes(28) + d50 + bytes(48)
    return header + tags + white + curve
