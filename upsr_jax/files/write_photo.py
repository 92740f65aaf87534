"""Write pictures whole or not at all.

They may hold EXIF data of the photo they come from, and a note of how they were made.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from upsr_jax.files import exif
from upsr_jax.files.photos import ImageError

# What a file system without hard links, or one that has too many, says to one more.
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class Encoder(NamedTuple):
    """How one file format is written and what it can hold."""

    format: str
    options: Mapping[str, Any]
    max_side: int
    has_alpha: bool


ENCODERS = {
    ".png": Encoder("PNG", {}, 2**31 - 1, True),
    ".jpg": Encoder("JPEG", {"quality": 95, "subsampling": 0}, 65500, False),
    ".webp": Encoder("WEBP", {"quality": 95}, 16383, True),
}


def check_storable(path: Path, height: int, width: int, has_alpha: bool) -> None:
    """Raise ImageError if the format that `path` names cannot hold such a picture."""
    encoder = ENCODERS.get(path.suffix)
    if encoder is None:
        raise ImageError(f"{path}: the name must end in one of {', '.join(ENCODERS)}.")
    if max(height, width) > encoder.max_side:
        raise ImageError(
            f"{path}: {encoder.format} holds at most {encoder.max_side} pixels a side, "
            f"not {width}x{height}; use png."
        )
    if has_alpha and not encoder.has_alpha:
        raise ImageError(f"{path}: {encoder.format} holds no transparency; use png or webp.")


def write_image(
    path: str | Path,
    image: UInt8[np.ndarray, "h w c"],
    overwrite: bool = False,
    note: str = "",
    kept: Image.Exif | None = None,
) -> None:
    """Write RGB or RGBA under a temporary name beside `path`, then give it its name at once.

    The file's EXIF data is what was `kept` of another, and `note`, where `read_note` finds it.
    Folders are made as needed. A kill leaves at most a hidden `.upsr-*.part`, for `remove_parts`,
    and on a file system without links an empty file at `path`. Raises ImageError if `path` exists
    (unless `overwrite`) or cannot be written.
    """
    path = Path(path)
    check_storable(path, *image.shape[:2], has_alpha=image.shape[2] == 4)
    encoder = ENCODERS[path.suffix]
    part = path.with_name(f".upsr-{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "xb") as file:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            data = exif.encode(kept or Image.Exif(), note)
            Image.fromarray(image).save(file, encoder.format, exif=data, **encoder.options)
            file.flush()
            os.fsync(file.fileno())
        _publish(part, path, overwrite)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of unfinished files; the others hold theirs locked."""
    for part in folder.glob(".upsr-*.part"):
        with contextlib.suppress(OSError), open(part, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _publish(part: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name in one step; unlike a rename, a link never replaces a file."""
    if overwrite:
        os.replace(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError as error:
        raise ImageError(f"{path}: exists already; nothing was replaced.") from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(part, path)
        except OSError:
            path.unlink()
            raise
