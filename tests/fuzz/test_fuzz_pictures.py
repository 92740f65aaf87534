"""A damaged picture is read as some picture, or refused in one sentence; nothing else happens.

`FUZZ_PICTURES=10000 pytest tests/fuzz/test_fuzz_pictures.py` makes so many of each kind.
"""

import io
import os
import resource
import time
import zlib

import cv2
import numpy as np
import pillow_heif
import pytest
from mutants import mutate
from photos import draw_photo
from PIL import Image, features
from tiffs import make_dng, make_tiff

from upsr_jax.files.deep import to_8_bits
from upsr_jax.files.photos import ImageError, read_photo, read_rgb
from upsr_jax.files.write_photo import write_bands

COUNT = int(os.environ.get("FUZZ_PICTURES", "100"))
SECONDS, BYTES = 5, 2**30  # of the processor for one file, and of memory for all
PIXELS = draw_photo(0, 48, 64)
KINDS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff jpeg": ("TIFF", {"compression": "jpeg"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "gif": ("GIF", {}),
    **({"avif": ("AVIF", {"speed": 10})} if features.check("avif") else {}),
}
DEFLATED = "deflate in a tiff"
CHECKED = ("png", "16-bit png", DEFLATED)  # by checksums, so that no wrong pixel is taken


def encode(kind: str) -> bytes:
    format, options = KINDS[kind]
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, **options)
    return file.getvalue()


def damage_strip(rng: np.random.Generator) -> bytes:
    """Damage what is compressed in a TIFF, and not its tags, which have no checksum."""
    height, width, _ = PIXELS.shape
    tags = {256: [width], 257: [height], 258: [8, 8, 8], 259: [8], 262: [2], 277: [3]}
    return make_tiff((tags, [mutate(zlib.compress(PIXELS.tobytes()), rng)]))


def encode_deep(kind: str) -> bytes:
    """Encode what Pillow itself doesn't decode, or not with all its bits."""
    deep = PIXELS.astype(np.uint16) * 257
    height, width, _ = deep.shape
    file = io.BytesIO()
    match kind:
        case "16-bit png":
            return cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
        case "16-bit tiff":
            return cv2.imencode(".tif", deep[..., ::-1])[1].tobytes()  # of LZW
        case "16-bit planes in a tiff":
            tags = {256: [width], 257: [height], 258: [16] * 3, 262: [2], 277: [3], 284: [2]}
            return make_tiff((tags, [plane.tobytes() for plane in np.moveaxis(deep, -1, 0)]))
        case "heic":
            pillow_heif.from_pillow(Image.fromarray(PIXELS)).save(file)
        case "10-bit heic":
            pillow_heif.from_bytes("RGB;16", (width, height), deep.tobytes()).save(file)
        case "raw":
            return make_dng(deep[..., 0])
        case "jpeg xl":
            write_bands(file, [PIXELS], height, width, "jxl")
    return file.getvalue()


DEEP_KINDS = (
    *("16-bit png", "16-bit tiff", "16-bit planes in a tiff", "heic", "10-bit heic", "raw"),
    "jpeg xl",
)


@pytest.mark.parametrize("kind", [*KINDS, DEFLATED])
def test_damaged_pictures(kind, capfd):
    encoded = encode(kind) if kind in KINDS else b""
    check_mutants(kind, encoded, lambda data: read_rgb(data, "its name"), "its name", capfd)


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_damaged_pictures_of_further_kinds(kind, capfd):
    check_mutants(kind, encode_deep(kind), lambda data: read_photo(data).pixels, "image", capfd)


def check_mutants(kind, encoded, read, name, capfd):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(0)
    for number in range(COUNT // 20 if kind == "raw" else COUNT):  # with a process for each
        data = mutate(encoded, rng) if encoded else damage_strip(rng)
        start = time.process_time()
        try:
            found = read(data)
        except ImageError as error:
            message = str(error)
            assert message.startswith(f"{name}: ") and message.endswith("."), message
            assert len(message.splitlines()) == 1
        else:
            assert found.dtype in (np.uint8, np.uint16) and found.ndim == 3
            if kind in CHECKED:
                np.testing.assert_array_equal(to_8_bits(found), PIXELS, err_msg=f"mutant {number}")
        assert time.process_time() - start < SECONDS, f"mutant {number}"
        assert capfd.readouterr() == ("", ""), f"mutant {number}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < BYTES  # ru_maxrss is in KiB
