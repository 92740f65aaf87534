"""A damaged picture is read as some picture, or refused in one sentence; nothing else happens.

`FUZZ_PICTURES=10000 pytest tests/fuzz/test_fuzz_pictures.py` makes so many of each kind.
"""

import io
import os
import resource
import time
import zlib

import numpy as np
import pytest
from mutants import mutate
from photos import draw_photo
from PIL import Image, features
from tiffs import make_tiff

from upsr_jax.files.photos import ImageError, read_rgb

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
CHECKED = ("png", DEFLATED)  # by checksums, so that no wrong pixel is taken


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


@pytest.mark.parametrize("kind", [*KINDS, DEFLATED])
def test_damaged_pictures(kind, capfd):
    encoded = encode(kind) if kind in KINDS else b""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        data = mutate(encoded, rng) if encoded else damage_strip(rng)
        start = time.process_time()
        try:
            found = read_rgb(data, "its name")
        except ImageError as error:
            message = str(error)
            assert message.startswith("its name: ") and message.endswith("."), message
            assert len(message.splitlines()) == 1
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
            if kind in CHECKED:
                np.testing.assert_array_equal(found, PIXELS, err_msg=f"mutant {number}")
        assert time.process_time() - start < SECONDS, f"mutant {number}"
        assert capfd.readouterr() == ("", ""), f"mutant {number}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < BYTES  # ru_maxrss is in KiB
