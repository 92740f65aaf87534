"""One photo: from a file to a file, as it was, only larger. The command and the server use it."""

import hashlib
import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from upsr_jax.files.metadata import Metadata
from upsr_jax.files.photos import Photo, read_photo
from upsr_jax.files.whole import file_sha256
from upsr_jax.files.write_photo import ENCODERS, check_storable, choose_format, write_bands
from upsr_jax.upscale.sizes import Wanted, result_size
from upsr_jax.upscale.upscaler import Progress, Upscaler

AS_IT_WAS = Wanted()
MAX_HEAT = 2**26  # pixels of a map of uncertainty; one of more is as small as the photo


class Picture(NamedTuple):
    """A result that is computed as its bands are taken: what `write_photo.write_bands` writes."""

    bands: Iterator[np.ndarray]
    height: int
    width: int
    format: str
    quality: int | None
    kept: Metadata
    note: str
    is_grey: bool


class Result(NamedTuple):
    """The file of a result, and what was done; `uncertainty` is a PNG."""

    data: bytes
    format: str
    width: int
    height: int
    note: str
    warnings: tuple[str, ...]
    uncertainty: bytes | None


def upscale_photo(
    upscaler: Upscaler,
    source: str | Path | bytes,
    wanted: Wanted = AS_IT_WAS,
    seed: int = 0,
    *,
    uncertainty: bool = False,
    on_progress: Progress | None = None,
) -> Result:
    """Upscale a photo, a file or what one holds, in memory.

    `on_progress` is called as `Upscaler.__call__` does it. Raises ImageError for a photo that can't
    be read or whose result the format can't hold, ValueError for a size that can't be, and what
    `Upscaler.__call__` raises.
    """
    note = describe(upscaler, source, wanted, seed)
    with caught_warnings() as warnings:
        photo = read_photo(source)
    unsure = np.zeros(photo.pixels.shape[:2], np.float32) if uncertainty else None
    picture = begin(upscaler, photo, wanted, seed, note, unsure, on_progress)
    file = io.BytesIO()
    write_bands(file, *picture)
    heat = None
    if unsure is not None:
        heat_file, heat = io.BytesIO(), draw_uncertainty(unsure, picture.height, picture.width)
        write_bands(heat_file, [heat], heat.shape[0], heat.shape[1], "png", note=note)
        heat = heat_file.getvalue()
    return Result(
        file.getvalue(),
        picture.format,
        picture.width,
        picture.height,
        note,
        tuple(warnings),
        heat,
    )


def describe(upscaler: Upscaler, source: str | Path | bytes, wanted: Wanted, seed: int) -> str:
    """Name all that decides a result, but for its format, which its file tells."""
    if isinstance(source, bytes):
        sha256 = hashlib.sha256(source).hexdigest()
    else:
        sha256 = file_sha256(Path(source))
    return upscaler.describe(sha256, seed, **wanted.changes())


def begin(
    upscaler: Upscaler,
    photo: Photo,
    wanted: Wanted,
    seed: int,
    note: str,
    uncertainty: Float32[np.ndarray, "h w"] | None = None,
    on_progress: Progress | None = None,
) -> Picture:
    """Begin the result of a photo; what is wanted is checked at once.

    `uncertainty` is filled as the bands are taken. Raises ValueError for a size that can't be, or
    ImageError if the format can't hold the result.
    """
    rows, columns, channels = photo.pixels.shape
    height, width = result_size(rows, columns, wanted)
    format = choose_format(wanted.format, photo, height, width)
    check_storable(format, height, width, has_alpha=channels == 4)
    bands = upscaler.upscale_bands(photo.pixels, (height, width), seed, uncertainty, on_progress)
    if photo.pixels.dtype == np.uint16 and ENCODERS[format].bits == 8:
        bands = (np.round(band / 257).astype(np.uint8) for band in bands)
    kept = stripped(photo.kept, wanted)
    return Picture(bands, height, width, format, wanted.quality, kept, note, photo.is_grey)


def stripped(kept: Metadata, wanted: Wanted) -> Metadata:
    """Leave out of a photo's metadata what is not wanted; its colours stay what they are."""
    if wanted.strip_metadata:
        return Metadata(icc=kept.icc, dpi=kept.dpi)
    return kept.without_location() if wanted.strip_location else kept


def draw_uncertainty(
    uncertainty: Float32[np.ndarray, "h w"], height: int, width: int
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a map of uncertainty in a result's size: dark is sure, bright is not."""
    if height * width <= MAX_HEAT:
        uncertainty = cv2.resize(uncertainty, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.round(255 * np.clip(uncertainty, 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


@contextmanager
def caught_warnings() -> Iterator[list[str]]:
    """Gather what is warned of while this thread reads a photo, instead of printing it."""
    found: list[str] = []
    thread = threading.get_ident()

    class Gather(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            if record.thread != thread or record.levelno != logging.WARNING:
                return True
            found.append(record.getMessage())
            return False

    logger, gather = logging.getLogger("upsr_jax.files.photos"), Gather()
    logger.addFilter(gather)
    try:
        yield found
    finally:
        logger.removeFilter(gather)
