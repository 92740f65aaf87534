"""TIFF files as other programs write them (TIFF 6.0, section 2)."""

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 256, 257, 258, 259, 262, 277, 284
EXTRA_SAMPLES, SUBFILE = 338, 254
PLACES = {"strips": (273, 279), "tiles": (324, 325)}  # the tags of where they are and how long
LONG = 4


def make_tiff(
    *pages: tuple[Mapping[int, Sequence[int]], Sequence[bytes]],
    order: str = "<",
    layout: str = "strips",
) -> bytes:
    """Make a file of pages, each of tags and of strips or tiles."""
    data = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0)
    link = 4  # where the place of the next page is to stand
    for tags, pieces in pages:
        starts = [len(data) + sum(map(len, pieces[:i])) for i in range(len(pieces))]
        data += b"".join(pieces)
        data += bytes(len(data) % 2)
        tags = {**tags, **dict(zip(PLACES[layout], (starts, list(map(len, pieces))), strict=True))}
        entries = b""
        for tag, values in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(values)}I", *values)
            if len(values) > 1:
                packed, data = struct.pack(f"{order}I", len(data)), data + packed
            entries += struct.pack(f"{order}HHI", tag, LONG, len(values)) + packed
        place = len(data)
        data += struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
        data = data[:link] + struct.pack(f"{order}I", place) + data[link + 4 :]
        link = len(data) - 4
    return data


def make_dng(sensor: np.ndarray) -> bytes:
    """Make a camera's RAW file of what its sensor saw, uint16 [h, w], rows of RG and GB in turn.

    It is to be turned by a quarter (DNG 1.4, chapter 4).
    """
    start = b"II*\0\x08\0\0\0"
    height, width = sensor.shape
    matrix = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)
    fractions = tuple(IFDRational(round(x * 10_000), 10_000) for x in matrix)  # XYZ to sRGB
    one = IFDRational(1, 1)
    byte, text, short, fraction, signed_fraction = 1, 2, 3, 5, 10
    tags = {
        **{WIDTH: (LONG, width), HEIGHT: (LONG, height), BITS: (short, 16)},
        **{COMPRESSION: (short, 1), PHOTOMETRIC: (short, 32803), SAMPLES: (short, 1)},
        **{273: (LONG, 0), 278: (LONG, height), 279: (LONG, sensor.nbytes), PLANAR: (short, 1)},
        **{271: (text, "Maker"), 272: (text, "Model"), 274: (short, 6), SUBFILE: (LONG, 0)},
        **{33421: (short, (2, 2)), 33422: (byte, b"\0\1\1\2")},  # the pattern of colours
        **{50706: (byte, b"\1\4\0\0"), 50708: (text, "Maker Model"), 50714: (LONG, 0)},
        **{50717: (LONG, 65535), 50721: (signed_fraction, fractions)},
        **{50728: (fraction, (one, one, one)), 50778: (short, 21)},
    }
    directory = ImageFileDirectory_v2(start)
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    return start + directory.tobytes(8) + sensor.astype("<u2").tobytes()
