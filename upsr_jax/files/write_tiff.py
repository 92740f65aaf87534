"""Write TIFF files strip by strip (TIFF 6.0; BigTIFF where 4 GB are too few)."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import TiffTags
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    EXTRASAMPLES,
    IMAGELENGTH,
    IMAGEWIDTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    PREDICTOR,
    ROWSPERSTRIP,
    SAMPLESPERPIXEL,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    ImageFileDirectory_v2,
)

from upsr_jax.files.bands import map_on_threads
from upsr_jax.files.checks import File

STARTS = {False: b"II*\0\x08\0\0\0", True: b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"}  # by is_big
CLASSIC = 2**32 - 2**24  # bytes of pixels that leave room for what else a classic file holds
DEFLATE, HORIZONTAL, TOGETHER, UNASSOCIATED = 8, 2, 1, 2
BLACK_IS_ZERO, RGB = 1, 2


def write_tiff(
    file: File,
    blocks: Iterable[np.ndarray],
    height: int,
    width: int,
    channels: int,
    bits: int,
    rows_per_block: int,
    tags: Mapping[int, Any],
) -> None:
    """Write a picture whose blocks of rows [rows, width, channels] follow from top to bottom.

    All blocks have `rows_per_block` rows, but for the last. `tags` are further ones of the file.
    """
    count = -(-height // rows_per_block)
    start = STARTS[height * width * channels * bits // 8 > CLASSIC]
    layout = {
        IMAGEWIDTH: width,
        IMAGELENGTH: height,
        BITSPERSAMPLE: (bits,) * channels,
        COMPRESSION: DEFLATE,
        PHOTOMETRIC_INTERPRETATION: BLACK_IS_ZERO if channels <= 2 else RGB,
        SAMPLESPERPIXEL: channels,
        ROWSPERSTRIP: rows_per_block,
        PLANAR_CONFIGURATION: TOGETHER,
        PREDICTOR: HORIZONTAL,
        **({EXTRASAMPLES: UNASSOCIATED} if channels in (2, 4) else {}),
    }

    def encode(offsets: list[int], sizes: list[int]) -> bytes:
        directory = ImageFileDirectory_v2(start)
        for tag, values in ((STRIPOFFSETS, offsets), (STRIPBYTECOUNTS, sizes)):
            directory.tagtype[tag] = TiffTags.LONG8 if len(start) == 16 else TiffTags.LONG
            directory[tag] = tuple(values)
        for tag, value in {**tags, **layout}.items():
            directory[tag] = value
        return start + directory.tobytes(len(start))

    def pack(block: np.ndarray) -> bytes:
        differences = block.astype(f"<u{bits // 8}")
        differences[:, 1:] -= block[:, :-1]
        return zlib.compress(differences.tobytes())

    # What says where the strips are comes first, as its size is known. Until it is written in the
    # end, the file is no TIFF.
    begin = file.tell()
    file.write(bytes(len(encode([0] * count, [0] * count))))
    sizes = []
    for packed in map_on_threads(pack, blocks):
        file.write(packed)
        sizes.append(len(packed))
    end = file.tell()
    offsets = np.cumsum([0, *sizes[:-1]]).tolist()  # from the end of what is now written
    file.seek(begin)
    file.write(encode(offsets, sizes))
    file.seek(end)
