"""Read TIFF files of layouts that Pillow has no mode for, with Pillow's libtiff for what is packed.

Each strip or tile is unpacked as if its bytes were pixels of grey. What the bytes mean is said here
(TIFF 6.0).
"""

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STARTS, ORIENTATION, SAMPLES, ROWS, SIZES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_STARTS, TILE_SIZES = 317, 322, 323, 324, 325
EXTRA, SAMPLE_FORMAT = 338, 339
SMALLER_COPY, MASK = 1, 4
PLANES_APART, DIFFERENCES, ASSOCIATED, UNASSOCIATED = 2, 2, 1, 2
NOT_PACKED = 1
# Which libtiff gives back as it was: none, LZW, deflate (two numbers), PackBits, LZMA, Zstandard
COMPRESSIONS = {NOT_PACKED, 5, 8, 32946, 32773, 34925, 50000}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4}
UNSIGNED = 1
MAX_PAGES = 100  # a file has a few smaller copies
BIG = 43  # where others have 42; Pillow reads no big ones of the other order of bytes
MAX_TILE = 2**28  # pixels
LONG, LONG8 = 4, 16  # types of numbers


class Page(NamedTuple):
    """One directory of a file: where it stands, and its tags."""

    place: int
    tags: Mapping[int, Any]

    def get(self, tag: int, default: int) -> int:
        value = self.tags.get(tag, default)
        return value[0] if isinstance(value, tuple) else value

    def all_of(self, tag: int) -> list[int]:
        return _numbers(self.tags.get(tag, ()))

    @property
    def bits(self) -> list[int]:
        return self.all_of(BITS) or [1]

    @property
    def is_copy(self) -> bool:
        """Whether it is a smaller copy of another page, or a mask for one."""
        return bool(self.get(SUBFILE, 0) & (SMALLER_COPY | MASK))


class Samples(NamedTuple):
    """Decoded samples [h, w, channels], of one bit depth, and which extra one is alpha."""

    pixels: np.ndarray
    photometric: int
    alpha: int | None  # ASSOCIATED or UNASSOCIATED


def list_pages(data: bytes) -> list[Page]:
    """List the pages of a TIFF file, MAX_PAGES at most."""
    is_big, order = data[2] == BIG, "<" if data[:2] == b"II" else ">"
    start = data[: 16 if is_big else 8]
    (place,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", start, len(start) // 2)
    pages: list[Page] = []
    while place and len(pages) < MAX_PAGES and place not in [page.place for page in pages]:
        directory = ImageFileDirectory_v2(start)
        file = io.BytesIO(data)
        file.seek(place)
        directory.load(file)
        pages.append(Page(place, directory))
        place = directory.next
    return pages


def is_ours(page: Page) -> bool:
    """Tell if Pillow would not read a page, or read it wrongly, and `read_samples` does.

    16 bits a channel Pillow reads as 8 at best, and grey with alpha in planes apart as stripes.
    """
    photometric, bits = page.get(PHOTOMETRIC, -1), page.bits
    count = page.get(SAMPLES, 1)
    is_apart = page.get(PLANAR, 1) == PLANES_APART and count > 1
    return (
        photometric in COLOURS
        and count >= COLOURS[photometric]
        and set(page.all_of(SAMPLE_FORMAT)) <= {UNSIGNED}
        and page.get(COMPRESSION, NOT_PACKED) in COMPRESSIONS
        and (set(bits) == {16} or (set(bits) == {8} and is_apart and photometric in (0, 1)))
    )


def read_samples(data: bytes, page: Page) -> Samples:
    """Decode a page that is ours; raises ValueError or OSError if it is damaged."""
    width, height, count = page.get(WIDTH, 0), page.get(HEIGHT, 0), page.get(SAMPLES, 1)
    size, is_apart = page.bits[0] // 8, page.get(PLANAR, 1) == PLANES_APART and count > 1
    is_tiled = TILE_STARTS in page.tags
    across, down = width, min(page.get(ROWS, 2**32 - 1), height)
    if is_tiled:
        across, down = page.get(TILE_WIDTH, 0), page.get(TILE_HEIGHT, 0)
    if min(width, height, across, down) < 1:
        raise ValueError("a side of no pixels")
    if across * down > MAX_TILE:
        raise ValueError("tiles larger than any picture")
    starts = page.all_of(TILE_STARTS if is_tiled else STARTS)
    sizes = page.all_of(TILE_SIZES if is_tiled else SIZES)
    channels = [slice(i, i + 1) for i in range(count)] if is_apart else [slice(0, count)]
    places = [
        (top, left, own)
        for own in channels
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]
    if not len(starts) == len(sizes) == len(places):
        raise ValueError("strips are missing")
    order = "<" if data[:2] == b"II" else ">"
    pixels = np.empty((height, width, count), f"u{size}")
    for (top, left, own), start, length in zip(places, starts, sizes, strict=True):
        part = pixels[top : top + down, left : left + across, own]
        rows = down if is_tiled else len(part)
        columns = across * part.shape[2] * size
        found = _unpack(data[start : start + length], page, columns, rows)
        found = found.view(f"{order}u{size}").reshape(rows, across, part.shape[2])
        part[:] = found[: len(part), : part.shape[1]]
        if page.get(PREDICTOR, 1) == DIFFERENCES:
            np.add.accumulate(part, axis=1, dtype=part.dtype, out=part)
    return _mean(pixels, page)


def _unpack(piece: bytes, page: Page, columns: int, rows: int) -> np.ndarray:
    """Unpack a strip or tile to bytes [rows, columns], as a grey picture in a file of its own."""
    compression = page.get(COMPRESSION, NOT_PACKED)
    if compression == NOT_PACKED:
        return np.frombuffer(piece, np.uint8, rows * columns).reshape(rows, columns)
    directory = ImageFileDirectory_v2(b"II*\0\x08\0\0\0")
    layout = {WIDTH: columns, HEIGHT: rows, BITS: 8, PHOTOMETRIC: BLACK_IS_ZERO, SAMPLES: 1}
    layout |= {COMPRESSION: compression, ROWS: rows, STARTS: 0, SIZES: len(piece)}
    for tag, value in layout.items():
        directory.tagtype[tag] = LONG
        directory[tag] = value
    file = b"II*\0\x08\0\0\0" + directory.tobytes(8) + piece
    with Image.open(io.BytesIO(file), formats=["TIFF"]) as image:
        return np.asarray(image)


def _mean(pixels: np.ndarray, page: Page) -> Samples:
    """Take the colours, black as 0, and the alpha of them if there is one."""
    photometric = page.get(PHOTOMETRIC, -1)
    colours = COLOURS[photometric]
    extra = page.all_of(EXTRA)
    if not extra and pixels.shape[2] > colours:
        extra = [UNASSOCIATED]  # as most programs take it that is not called anything
    alpha = next(((i, kind) for i, kind in enumerate(extra) if kind in (1, 2)), None)
    taken = [*range(colours), *([colours + alpha[0]] if alpha else [])]
    if max(taken) >= pixels.shape[2]:
        raise ValueError("channels are missing")
    if len(taken) < pixels.shape[2]:
        pixels = pixels[..., taken]
    if photometric == WHITE_IS_ZERO:
        pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
        photometric = BLACK_IS_ZERO
    return Samples(pixels, photometric, alpha[1] if alpha else None)


def as_one_pixel(data: bytes, page: Page) -> bytes:
    """Make a file, of one pixel, that Pillow opens, and whose other tags are those of a page."""
    layout = {WIDTH: [1], HEIGHT: [1], BITS: [8], COMPRESSION: [NOT_PACKED], SAMPLES: [1]}
    layout |= {PHOTOMETRIC: [BLACK_IS_ZERO], STARTS: [0], SIZES: [1], PLANAR: [1], PREDICTOR: [1]}
    return add_directory(data, page.place, layout)


def add_directory(data: bytes, place: int, layout: Mapping[int, Sequence[int]]) -> bytes:
    """Add the directory at `place` once more to a file, as its first, with other numbers."""
    is_big, order = data[2] == BIG, "<" if data[:2] == b"II" else ">"
    count_type, size, number = ("Q", 20, "Q") if is_big else ("H", 12, "I")
    (count,) = struct.unpack_from(order + count_type, data, place)
    place += struct.calcsize(order + count_type)
    entries = {}
    for _ in range(count):
        entry = data[place : place + size]
        entries[struct.unpack_from(f"{order}H", entry)[0]] = entry
        place += size
    for tag in (ROWS, TILE_STARTS, TILE_SIZES, TILE_WIDTH, TILE_HEIGHT, EXTRA, SAMPLE_FORMAT):
        entries.pop(tag, None)
    end = len(data) + len(data) % 2
    added = b""
    for tag, values in layout.items():
        packed = struct.pack(f"{order}{len(values)}{number}", *values)
        if len(values) > 1:
            added, packed = added + packed, struct.pack(order + number, end + len(added))
        head = struct.pack(f"{order}HH{number}", tag, LONG8 if is_big else LONG, len(values))
        entries[tag] = head + packed
    directory = struct.pack(order + count_type, len(entries))
    directory += b"".join(entries[tag] for tag in sorted(entries))
    directory += struct.pack(order + number, 0)
    start = data[: 8 if is_big else 4] + struct.pack(order + number, end + len(added))
    return b"".join([start, memoryview(data)[len(start) :], bytes(len(data) % 2), added, directory])


def _numbers(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value]
