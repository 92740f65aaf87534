"""Read photos of more than 8 bits a channel as uint16, which Pillow doesn't, from 0 to 65535."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
from einops import repeat
from jaxtyping import UInt8, UInt16
from PIL import Image

from upsr_jax.files import checks, colours, tiffs

PIXELS_PER_PASS = (  # of an interlaced PNG: first column and row, and the steps (PNG, 8.1)
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by a PNG's colour type


def is_deep_png(data: bytes) -> bool:
    """Tell if a PNG has 16 bits a channel and no colour that means transparent."""
    return data[24:25] == b"\x10" and not any(checks.chunk_contents(data, b"tRNS"))


def read_deep_png(data: bytes) -> UInt16[np.ndarray, "h w c"]:
    """Decode a PNG of 16 bits a channel to grey, RGB or RGBA; raise ValueError if it is damaged.

    OpenCV says nothing of missing pixels: they are counted before.
    """
    width, height, _, colour_type, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    size = 2 * CHANNELS[colour_type]
    parts = PIXELS_PER_PASS if is_interlaced else ((0, 0, 1, 1),)
    needed = 0
    for left, top, step_x, step_y in parts:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        needed += rows * (columns * size + 1) if columns > 0 and rows > 0 else 0
    stream, count = zlib.decompressobj(), 0
    for content in checks.chunk_contents(data, b"IDAT"):
        for start in range(0, len(content), checks.PIECE):
            count += len(stream.decompress(content[start : start + checks.PIECE]))
            if count > needed:
                raise ValueError("more pixels than it has place for")
    if count < needed or not stream.eof:
        raise ValueError("pixels are missing")
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.shape[:2] != (height, width):
        raise ValueError("not decoded")
    if found.ndim == 2:
        return found[..., None]
    return cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def read_deep_tiff(
    data: bytes, page: tiffs.Page, image: Image.Image
) -> UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]:
    """Decode a page that is `tiffs.is_ours` to grey, RGB or RGBA; CMYK becomes 8-bit sRGB.

    `image` has the profile. Raises ValueError or OSError if it is damaged.
    """
    pixels, photometric, alpha = tiffs.read_samples(data, page)
    if alpha == tiffs.ASSOCIATED:
        pixels = divide_by_alpha(pixels)
    if photometric != tiffs.CMYK:
        return pixels
    pixels = to_8_bits(pixels)
    cmyk = Image.fromarray(np.ascontiguousarray(pixels[..., :4]), "CMYK")
    cmyk.info = image.info
    return np.dstack([np.asarray(colours.to_srgb(cmyk)), pixels[..., 4:]])


def read_deep_heif(heif: Any) -> UInt16[np.ndarray, "h w c"]:
    """Take the pixels of pillow_heif's file, opened with `convert_hdr_to_8bit=False`."""
    pixels = np.asarray(heif)
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return divide_by_alpha(pixels) if heif.premultiplied_alpha else pixels


def divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    """Turn colours that are multiplied by alpha, the last channel, into colours."""
    full = np.iinfo(pixels.dtype).max
    out = pixels.copy()
    for row in out:  # for the sake of memory
        alpha = np.maximum(row[:, -1:], 1).astype(np.float32)
        row[:, :-1] = np.minimum(np.round(row[:, :-1] * (full / alpha)), full)
    return out


def to_8_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "h w c"]:
    """Scale 16 bits to 8, rounded; 8 bits stay."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.stack([((row.astype(np.uint32) + 128) // 257).astype(np.uint8) for row in pixels])


def turn(pixels: np.ndarray, how: Image.Transpose | None) -> np.ndarray:
    """Turn pixels [h, w, c] as Pillow turns an image."""
    match how:
        case Image.Transpose.FLIP_LEFT_RIGHT:
            pixels = pixels[:, ::-1]
        case Image.Transpose.ROTATE_180:
            pixels = pixels[::-1, ::-1]
        case Image.Transpose.FLIP_TOP_BOTTOM:
            pixels = pixels[::-1]
        case Image.Transpose.TRANSPOSE:
            pixels = pixels.swapaxes(0, 1)
        case Image.Transpose.ROTATE_270:
            pixels = np.rot90(pixels, -1)
        case Image.Transpose.TRANSVERSE:
            pixels = np.rot90(pixels, 2).swapaxes(0, 1)
        case Image.Transpose.ROTATE_90:
            pixels = np.rot90(pixels)
    return np.ascontiguousarray(pixels)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Repeat grey, and leave out alpha where every pixel is opaque."""
    if pixels.shape[2] in (2, 4) and pixels[..., -1].min() == np.iinfo(pixels.dtype).max:
        pixels = pixels[..., :-1]
    match pixels.shape[2]:
        case 1:
            return repeat(pixels, "h w 1 -> h w 3")
        case 2:
            return pixels[..., [0, 0, 0, 1]]
    return np.ascontiguousarray(pixels)
