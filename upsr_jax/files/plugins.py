"""Formats that only the extra `photos` reads: HEIC, JPEG XL and camera RAW, known by content."""

import importlib
import io
import struct
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from upsr_jax.files import tiffs
from upsr_jax.files.deep import read_deep_heif

JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
# Canon's old and new, Fujifilm, Olympus (three), Panasonic, Sigma, Minolta
RAW_STARTS = (
    *(b"II\x1a\0\0\0HEAPCCDR", b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0"),
    *(b"FOVb", b"\0MRM"),
)
DNG_VERSION, SUB_IFDS, MAKE = 50706, 330, 271
SENSOR, LINEAR_SENSOR = 32803, 34892  # photometric interpretations
# Its gamma is sRGB's, as dcraw calls it: the power, and the slope at black
DEVELOP = """
import io, sys
import numpy as np
import rawpy
with rawpy.imread(io.BytesIO(sys.stdin.buffer.read())) as raw:
    pixels = raw.postprocess(use_camera_wb=True, output_bps=16, gamma=(2.4, 12.92))
np.save(sys.stdout.buffer, pixels)
"""
MISSING = "{} needs an extra: pip install 'upsr_jax[photos]'"


class MissingExtraError(ImportError):
    """A file needs a library that is not installed; the sentence says which extra has it."""


def import_extra(module: str, format: str) -> ModuleType:
    """Import a library of the extra; raises MissingExtraError if it isn't there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(MISSING.format(format)) from error


class Opened(NamedTuple):
    """A photo whose header was read, and of its pixels nothing.

    `image` has what is known beside the pixels and, unless `is_deep_only`, the pixels in 8 bits.
    `read_deep` decodes them to 16 bits, or 8 in a layout that Pillow doesn't know, to grey, RGB or
    CMYK with or without alpha; None where `image` has all.
    """

    image: Image.Image
    width: int
    height: int
    format: str
    read_deep: Callable[[], np.ndarray] | None = None
    is_deep_only: bool = False
    is_upright: bool = False  # as `read_deep` gives it


def open_heic(data: bytes) -> Opened:
    """Open HEIC or HEIF; raises MissingExtraError, or what the library raises."""
    library = import_extra("pillow_heif", "HEIC")
    file = library.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    image = library.HeifImageFile(io.BytesIO(data))
    is_deep = file.mode.endswith(";16")
    deep = (lambda: read_deep_heif(file)) if is_deep else None
    return Opened(image, image.width, image.height, "HEIF", deep, is_upright=True)


def open_jxl(data: bytes) -> Opened:
    """Open JPEG XL, of which 8 bits a channel are read; raises as `open_heic`."""
    plugin = import_extra("pylibjxl.pillow_plugin", "JPEG XL")
    image = plugin.JxlImageFile(io.BytesIO(data))
    return Opened(image, image.width, image.height, "JXL")


def open_raw(data: bytes) -> Opened:
    """Open what a camera's sensor saw, to be developed to sRGB; raises as `open_heic`."""
    library = import_extra("rawpy", "Camera RAW")
    with library.imread(io.BytesIO(data)) as raw:
        width, height = raw.sizes.width, raw.sizes.height
        if raw.sizes.flip in (5, 6):  # a quarter turn
            width, height = height, width

    image = Image.new("RGB", (1, 1))
    if data[:4] in (b"II*\0", b"MM\0*"):
        image.info["exif"] = b"Exif\0\0" + data
    return Opened(
        image, width, height, "RAW", lambda: develop(data), is_deep_only=True, is_upright=True
    )


def develop(data: bytes) -> np.ndarray:
    """Develop a camera's RAW to 16-bit sRGB [h, w, 3]; raise ValueError if it is damaged.

    LibRaw tells of missing pixels on stderr alone, hence a process of its own.
    """
    done = subprocess.run([sys.executable, "-c", DEVELOP], input=data, capture_output=True)
    if done.returncode or done.stderr:
        raise ValueError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    return np.load(io.BytesIO(done.stdout))


def encode_jxl(pixels: np.ndarray, quality: int, exif: bytes, xmp: bytes, icc: bytes) -> bytes:
    """Encode 8-bit pixels [h, w, 1, 3 or 4] as JPEG XL; without loss for a quality of 100."""
    library = import_extra("pylibjxl", "JPEG XL")
    # As libjxl's own command takes it: 1 is without visible loss
    distance = 0.1 + (100 - quality) * 0.09 if quality >= 30 else 6.4 + (30 - quality) * 0.25
    return library.encode(
        np.array(pixels),
        effort=5,  # from 7 on, libjxl 0.11.2 loses more at edges, and more for a higher quality
        distance=0.0 if quality == 100 else distance,
        lossless=quality == 100,
        exif=exif or None,
        xmp=xmp or None,
        icc=icc or None,
    )


def find_opener(data: bytes) -> Callable[[bytes], Opened] | None:
    """Find what opens a file that Pillow itself doesn't read, by its content."""
    if data.startswith(JXL_STARTS):
        return open_jxl
    if data[4:8] == b"ftyp":
        if data[8:12] == b"crx ":
            return open_raw
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, _first_box(data), 4))]
        if any(brand in HEIC_BRANDS for brand in brands):
            return open_heic
    return open_raw if data.startswith(RAW_STARTS) else None


def _first_box(data: bytes) -> int:
    return min(struct.unpack_from(">I", data)[0], len(data), 1024)


def is_raw(data: bytes, pages: list[tiffs.Page]) -> bool:
    """Tell if a file is a camera's RAW that looks like a TIFF."""
    if not pages:
        return False
    first = pages[0]
    return (
        DNG_VERSION in first.tags
        or data[8:10] == b"CR"
        or first.get(tiffs.PHOTOMETRIC, -1) in (SENSOR, LINEAR_SENSOR)
        # A copy for a quick look, and behind it what the sensor saw
        or (
            MAKE in first.tags
            and SUB_IFDS in first.tags
            and first.get(tiffs.SUBFILE, 0) == tiffs.SMALLER_COPY
        )
    )
