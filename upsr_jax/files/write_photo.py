"""Write pictures whole or not at all, PNG and TIFF without having all of them in memory.

They may hold what is kept of the photo they come from, and a note of how they were made.
"""

import itertools
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from upsr_jax.files import checks, metadata
from upsr_jax.files.bands import regroup
from upsr_jax.files.checks import File
from upsr_jax.files.metadata import Metadata
from upsr_jax.files.open_photo import ImageError, open_result
from upsr_jax.files.photos import Photo
from upsr_jax.files.plugins import MissingExtraError, encode_jxl, import_extra
from upsr_jax.files.whole import DiskFullError, naming_full_disk, whole_file
from upsr_jax.files.write_png import write_png
from upsr_jax.files.write_tiff import write_tiff


class Encoder(NamedTuple):
    """How one file format is written and what it can hold."""

    name: str  # Pillow's
    max_side: int
    quality: int = 0
    options: Mapping[str, Any] = MappingProxyType({})
    has_alpha: bool = True
    bits: int = 8  # a channel, at most
    max_pixels: int = 2**62


ENCODERS = {
    "png": Encoder("PNG", 2**31 - 1, bits=16),
    "jpg": Encoder("JPEG", 65500, 95, {"subsampling": 0}, has_alpha=False),
    "webp": Encoder("WEBP", 16383, 95),
    "tiff": Encoder("TIFF", 2**31 - 1, bits=16),
    # What libavif and with it most viewers decode; a slower speed gains little
    "avif": Encoder("AVIF", 2**15, 90, {"speed": 8}, max_pixels=2**28),
    "jxl": Encoder("JPEG XL", 2**18, 95, max_pixels=2**28),  # as its encoder takes much memory
}
FORMATS = tuple(ENCODERS)
SUFFIXES = {f".{format}": format for format in FORMATS} | {".jpeg": "jpg", ".tif": "tiff"}
BLOCK = 2**20  # bytes that are packed at once, each block apart from the others
PNG_END = b"IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"


def format_of(path: str | Path) -> str:
    """Tell which format a name asks for, by its suffix; raise ImageError if it is none of ours."""
    format = SUFFIXES.get(Path(path).suffix.lower())
    if format is None:
        raise ImageError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}.")
    return format


def choose_format(
    wanted: str, photo: Photo, height: int | None = None, width: int | None = None
) -> str:
    """Choose one of FORMATS for a photo's result of so many pixels, its own size if not given.

    "auto" is the photo's own format, or png where that can't hold such a picture. Raises ValueError
    for what is neither "auto" nor one of FORMATS.
    """
    if wanted not in ("auto", *FORMATS):
        raise ValueError(f"no format '{wanted}': choose auto, {', '.join(FORMATS)}")
    if wanted != "auto":
        return wanted
    rows, columns, channels = photo.pixels.shape
    try:
        check_storable(
            photo.format,
            height or rows,
            width or columns,
            has_alpha=channels == 4,
            bits=8 * photo.pixels.itemsize,
        )
    except ImageError:
        return "png"
    return photo.format


def check_storable(
    name: str | Path, height: int, width: int, has_alpha: bool, bits: int = 8
) -> None:
    """Raise ImageError if a format, one of FORMATS or a file's name, can't hold such a picture."""
    format = str(name) if name in FORMATS else format_of(name)
    encoder = ENCODERS[format]
    if format == "jxl":
        try:
            import_extra("pylibjxl", "JPEG XL")
        except MissingExtraError as error:
            raise ImageError(f"{name}: {error}.") from error
    if max(height, width) > encoder.max_side:
        raise ImageError(
            f"{name}: {encoder.name} holds at most {encoder.max_side} pixels a side, "
            f"not {width}x{height}; use png."
        )
    if height * width > encoder.max_pixels:
        raise ImageError(
            f"{name}: {encoder.name} holds at most {encoder.max_pixels:,} pixels, "
            f"not {width}x{height}; use png."
        )
    if has_alpha and not encoder.has_alpha:
        raise ImageError(f"{name}: {encoder.name} holds no transparency; use png or webp.")
    if bits > encoder.bits:
        raise ImageError(
            f"{name}: {encoder.name} holds {encoder.bits} bits a channel, not {bits}; use png."
        )


def is_whole(path: Path, pixels: int) -> bool:
    """Tell whether a picture that was written has so many pixels, by its header, and its end."""
    try:
        with path.open("rb") as file, open_result(path) as image:
            return image.width * image.height == pixels and _is_ended(file, image)
    except Exception:  # decoders raise anything on damaged files
        return False


def _is_ended(file: File, image: Image.Image) -> bool:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags, size = image.tag_v2, file.seek(0, os.SEEK_END)
        starts = tags[TiffImagePlugin.STRIPOFFSETS]
        return starts[-1] + tags[TiffImagePlugin.STRIPBYTECOUNTS][-1] == size
    if image.format in ("AVIF", "JXL"):
        return checks.ends_with_a_box(file)
    # Opening a WebP reads it to its end.
    end = {"PNG": PNG_END, "JPEG": JPEG_END}.get(image.format or "", b"")
    file.seek(-len(end), os.SEEK_END)
    return file.read() == end


def write_bands(
    file: File,
    bands: Iterable[np.ndarray],
    height: int,
    width: int,
    format: str,
    quality: int | None = None,
    kept: Metadata | None = None,
    note: str = "",
    is_grey: bool = False,
) -> None:
    """Write a picture whose bands, uint8 or uint16 [rows, width, 3 or 4], follow from the top.

    `format` is one of FORMATS, `quality` 1 to 100 for those that lose some. PNG and TIFF are
    written as the bands come, to a file that can be sought in; the others when all are there. The
    file is grey, of the bands' first channel, if `is_grey`, or if one band is all, has R = G = B
    everywhere and no profile. It holds what was `kept` of a photo, and `note`, where `read_note`
    finds it. What the format can't hold, or bands that are no such picture, are an ImageError or
    ValueError.
    """
    bands = iter(bands)
    first = next(bands, None)
    if first is None:
        raise ValueError("a picture without any rows")
    channels, bits = first.shape[2], 8 * first.itemsize
    check_storable(format, height, width, has_alpha=channels == 4, bits=bits)
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"a quality of {quality}: it goes from 1 to 100")
    kept = kept or Metadata()
    if len(first) == height and not kept.icc:
        is_grey = is_grey or all((row[:, :3] == row[:, :1]).all() for row in first)
    taken = _take(itertools.chain([first], bands), height, (width, channels), is_grey)
    channels -= 2 * is_grey
    if is_grey:  # whose pixels an RGB profile is not for
        kept = replace(kept, icc=b"")
    rows = max(1, BLOCK // (width * channels * bits // 8))
    if format == "png":
        chunks = metadata.as_chunks(kept, note)
        write_png(file, regroup(taken, rows), height, width, channels, bits, chunks)
    elif format == "tiff":
        tags = metadata.as_tags(kept, note)
        write_tiff(file, regroup(taken, rows), height, width, channels, bits, rows, tags)
    else:
        pixels = np.concatenate(list(taken))
        options = metadata.as_options(kept, note, ENCODERS[format].name)
        _encode(file, pixels, format, quality, options)


def _encode(
    file: File, pixels: np.ndarray, format: str, quality: int | None, options: dict[str, Any]
) -> None:
    encoder = ENCODERS[format]
    quality = quality or encoder.quality
    if format == "jxl":
        if pixels.shape[2] == 2:  # which the library doesn't take
            pixels = pixels[..., [0, 0, 0, 1]]
        file.write(encode_jxl(pixels, quality, **options))
        return
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(file, encoder.name, quality=quality, **encoder.options, **options)


def _take(
    bands: Iterable[np.ndarray], height: int, row: tuple[int, int], is_grey: bool
) -> Iterable[np.ndarray]:
    """Pass bands on, the grey of them if asked, and make sure that they are a whole picture."""
    count = 0
    for band in bands:
        if band.shape[1:] != row:
            raise ValueError(f"a band of shape {band.shape} in a picture of rows {row}")
        count += len(band)
        grey = [0, 3] if row[1] == 4 else [0]
        yield band[..., grey] if is_grey else band
    if count != height:
        raise ValueError(f"{count} rows in a picture of {height}")


def write_photo(
    path: str | Path,
    bands: Iterable[np.ndarray],
    height: int,
    width: int,
    format: str | None = None,
    quality: int | None = None,
    kept: Metadata | None = None,
    note: str = "",
    is_grey: bool = False,
    overwrite: bool = False,
) -> None:
    """Write bands as `write_bands` does, to a file that is whole or isn't there.

    The format is by default that of the name. Folders are made as needed. Raises ImageError if
    `path` exists (unless `overwrite`) or cannot be written.
    """
    path = Path(path)
    if format is None:
        check_storable(path, height, width, has_alpha=False)
        format = format_of(path)
    try:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, overwrite) as file:
            write_bands(file, bands, height, width, format, quality, kept, note, is_grey)
    except DiskFullError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        if isinstance(error, FileExistsError) and path.parent.is_dir():
            raise ImageError(f"{path}: exists already; nothing was replaced.") from error
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}).") from error


def write_image(
    path: str | Path,
    image: UInt8[np.ndarray, "h w c"],
    overwrite: bool = False,
    note: str = "",
    kept: Metadata | None = None,
) -> None:
    """Write RGB or RGBA as `write_photo` does; where R = G = B everywhere, the file is a grey one.

    Raises ImageError if `path` exists (unless `overwrite`) or cannot be written.
    """
    height, width, channels = image.shape
    check_storable(path, height, width, has_alpha=channels == 4)
    write_photo(path, [image], height, width, kept=kept, note=note, overwrite=overwrite)
