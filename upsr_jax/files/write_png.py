"""Write PNG files band by band (PNG, third edition: W3C, 2025), packed on several threads."""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from upsr_jax.files.bands import map_on_threads
from upsr_jax.files.checks import PNG_START, File

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by the number of channels
LEVEL = 6


def write_png(
    file: File,
    blocks: Iterable[np.ndarray],
    height: int,
    width: int,
    channels: int,
    bits: int,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Write a picture whose blocks of rows [rows, width, channels] follow from top to bottom.

    `chunks` are of names and contents and stand before the pixels.
    """
    file.write(PNG_START)
    header = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[channels], 0, 0, 0)
    for name, content in ((b"IHDR", header), *chunks):
        write_chunk(file, name, content)
    size = channels * bits // 8
    above = np.zeros(width * size, np.uint8)
    rows_done, check = 0, 1

    def with_row_above() -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
        nonlocal above, rows_done
        for block in blocks:
            rows = block.astype(f">u{bits // 8}", copy=False).reshape(len(block), -1)
            rows = np.ascontiguousarray(rows).view(np.uint8)
            rows_done += len(rows)
            yield rows, above, rows_done == height
            above = rows[-1]

    def pack(job: tuple[np.ndarray, np.ndarray, bool]) -> tuple[bytes, bytes]:
        rows, above, is_last = job
        filtered = filter_rows(rows, above, size)
        return filtered, deflate(filtered, is_last)

    start = b"\x78\x9c"  # of a zlib stream; what follows are its blocks, of which none needs others
    for filtered, packed in map_on_threads(pack, with_row_above()):
        check = zlib.adler32(filtered, check)
        write_chunk(file, b"IDAT", start + packed)
        start = b""
    write_chunk(file, b"IDAT", check.to_bytes(4))
    write_chunk(file, b"IEND", b"")


def write_chunk(file: File, name: bytes, content: bytes) -> None:
    """Write one chunk of a PNG file."""
    file.write(struct.pack(">I", len(content)) + name)
    file.write(content)
    file.write(zlib.crc32(content, zlib.crc32(name)).to_bytes(4))


def deflate(data: bytes, is_last: bool) -> bytes:
    """Pack a part of a raw deflate stream, so that it starts and ends at a byte."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH)


def filter_rows(rows: UInt8[np.ndarray, "h n"], above: UInt8[np.ndarray, "n"], size: int) -> bytes:
    """Filter rows of bytes, `size` of them a pixel, each as it probably packs best.

    That is the one whose differences are smallest, by the sum of their amounts (PNG, section 12.7).
    """
    a = np.zeros_like(rows)  # left, above, and left of above
    a[:, size:] = rows[:, :-size]
    b = np.vstack([above[None], rows[:-1]])
    c = np.zeros_like(rows)
    c[:, size:] = b[:, :-size]
    mean = (a & b) + ((a ^ b) >> 1)  # without a carry
    guesses = (np.zeros_like(rows), a, b, mean, predict(a, b, c))
    filtered = [rows - guess for guess in guesses]
    # -128, the only one whose amount does not fit, is 128 as unsigned
    costs = [np.abs(d.view(np.int8)).view(np.uint8).sum(-1, dtype=np.uint32) for d in filtered]
    best = np.argmin(costs, axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = best
    for kind, differences in enumerate(filtered):
        out[best == kind, 1:] = differences[best == kind]
    return out.tobytes()


def predict(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Choose of three neighbours the one nearest to a + b - c (Paeth's filter), all in bytes."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    to_a = np.maximum(b, c) - np.minimum(b, c)  # |a + b - c - a|
    to_b = np.maximum(a, c) - np.minimum(a, c)
    # Outside of a and b, c is never the nearest: its distance is the sum of the other two
    to_c = np.where((c < low) | (c > high), 255, np.maximum(to_a, to_b) - np.minimum(to_a, to_b))
    near = np.where(to_b <= to_c, b, c)
    return np.where((to_a <= to_b) & (to_a <= to_c), a, near)
