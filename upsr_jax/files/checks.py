"""Check what Pillow doesn't: checksums of pixels, and what it costs to decode them.

Damage is a ValueError. Which files cost too much is for the caller to say.
"""

import ctypes
import io
import logging
import os
import re
import struct
import zlib
from contextlib import suppress
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

File = BinaryIO | io.BytesIO  # that one lacks what the other has: a name
PNG_START = b"\x89PNG\r\n\x1a\n"
SCAN = b"\xff\xda"
END_OF_IMAGE = 0xD9
# A marker of JPEG's: among compressed pixels, other bytes than these follow 0xFF (T.81, B.1.1).
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
DEFLATE = (8, 32946)  # as TIFF files call it
PIECE = 2**16  # bytes: what is decompressed at once is at most a thousand times as much


def keep_quiet() -> None:
    """Keep Pillow and its libtiff from printing errors, which Pillow raises as well."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    with suppress(AttributeError, OSError):  # where Pillow is linked in another way, it prints
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def check_png(data: bytes) -> None:
    """Check all chunks of a PNG file, and that it has one profile at most; a cut is let pass."""
    view, place, profiles = memoryview(data), len(PNG_START), 0
    while place < len(data):
        kind, end = data[place + 4 : place + 8], place + 8
        end += int.from_bytes(data[place : place + 4])
        if zlib.crc32(view[place + 4 : end]).to_bytes(4) != data[end : end + 4]:
            raise ValueError("a checksum is wrong")
        profiles += kind == b"iCCP"
        if profiles > 1:  # each may take the time to decompress 64 MiB
            raise ValueError("more than one colour profile")
        if kind == b"IEND":
            return
        place = end + 4


def count_scans(data: bytes) -> int:
    """Count how often a JPEG file, of several scans, goes over its picture."""
    # Found in pixels alone they are scans; a thumbnail or a film in the file has others.
    scans, place = 0, 2
    while found := MARKER.search(data, place):
        place, marker = found.end(), data[found.end() - 1]
        if marker == END_OF_IMAGE:
            break
        scans += marker == SCAN[1]
        place += int.from_bytes(data[place : place + 2])
    return scans


def check_tiff(data: bytes, tags: TiffImagePlugin.ImageFileDirectory_v2, most: int) -> None:
    """Check the checksums in a TIFF file that is compressed by deflate to `most` bytes or less."""
    if tags.get(TiffImagePlugin.COMPRESSION) not in DEFLATE:
        return
    is_tiled = TiffImagePlugin.TILEOFFSETS in tags
    starts = tags[TiffImagePlugin.TILEOFFSETS if is_tiled else TiffImagePlugin.STRIPOFFSETS]
    counts = tags[TiffImagePlugin.TILEBYTECOUNTS if is_tiled else TiffImagePlugin.STRIPBYTECOUNTS]
    for start, count in zip(starts, counts, strict=True):
        stream = zlib.decompressobj()
        for place in range(start, start + count, PIECE):
            most -= len(stream.decompress(data[place : min(place + PIECE, start + count)]))
            if stream.eof or most < 0:
                break
        if most < 0 or not stream.eof:
            raise ValueError("its compressed pixels have no end")


def ends_with_a_box(file: File) -> bool:
    """Tell if a file of boxes, as AVIF, ends where its last box does (ISO 14496-12, 4.2)."""
    end, place = file.seek(0, os.SEEK_END), 0
    while place < end:
        file.seek(place)
        size, _, long_size = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        if size == 0:  # up to the end, wherever that is
            return False
        place += long_size if size == 1 else max(size, 8)
    return place == end
