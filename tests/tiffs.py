"""TIFF files as other programs write them (TIFF 6.0, section 2)."""

import struct
from collections.abc import Mapping, Sequence

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
