"""Write pictures whole or not at all.

They may hold EXIF data of the photo they come from, and a note of how they were made.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from upsr_jax.files import exif
from upsr_jax.files.photos import ImageError, without_limit
from upsr_jax.files.whole import DiskFullError, naming_full_disk, whole_file


class Encoder(NamedTuple):
    """How one file format is written and what it can hold."""

    format: str
    options: Mapping[str, Any]
    max_side: int
    has_alpha: bool
    end: bytes


ENCODERS = {
    ".png": Encoder("PNG", {}, 2**31 - 1, True, b"IEND\xaeB`\x82"),
    ".jpg": Encoder("JPEG", {"quality": 95, "subsampling": 0}, 65500, False, b"\xff\xd9"),
    ".webp": Encoder("WEBP", {"quality": 95}, 16383, True, b""),
}
ENCODERS[".jpeg"] = ENCODERS[".jpg"]


def check_storable(path: Path, height: int, width: int, has_alpha: bool) -> None:
    """Raise ImageError if the format that `path` names cannot hold such a picture."""
    encoder = ENCODERS.get(path.suffix.lower())
    if encoder is None:
        raise ImageError(f"{path}: the name must end in one of {', '.join(ENCODERS)}.")
    if max(height, width) > encoder.max_side:
        raise ImageError(
            f"{path}: {encoder.format} holds at most {encoder.max_side} pixels a side, "
            f"not {width}x{height}; use png."
        )
    if has_alpha and not encoder.has_alpha:
        raise ImageError(f"{path}: {encoder.format} holds no transparency; use png or webp.")


def is_whole(path: Path, pixels: int) -> bool:
    """Tell whether a picture that was written has so many pixels, by its header, and its end."""
    encoder = ENCODERS[path.suffix.lower()]
    try:
        # Opening a WebP reads it to its end.
        with path.open("rb") as file, without_limit(), Image.open(file) as image:
            file.seek(-len(encoder.end), os.SEEK_END)
            is_ended = file.read() == encoder.end
            return is_ended and image.width * image.height == pixels
    except Exception:  # decoders raise anything on damaged files
        return False


def write_image(
    path: str | Path,
    image: UInt8[np.ndarray, "h w c"],
    overwrite: bool = False,
    note: str = "",
    kept: Image.Exif | None = None,
) -> None:
    """Write RGB or RGBA as `whole_file` does; where R = G = B everywhere, the file is a grey one.

    The file's EXIF data is what was `kept` of another, and `note`, where `read_note` finds it.
    Folders are made as needed. Raises ImageError if `path` exists (unless `overwrite`) or cannot be
    written.
    """
    path = Path(path)
    check_storable(path, *image.shape[:2], has_alpha=image.shape[2] == 4)
    if all((row[:, :3] == row[:, :1]).all() for row in image):
        image = image[..., [0, 3]] if image.shape[2] == 4 else image[..., 0]
    encoder = ENCODERS[path.suffix.lower()]
    data = exif.encode(kept or Image.Exif(), note)
    try:
        with naming_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, overwrite) as file:
            Image.fromarray(image).save(file, encoder.format, exif=data, **encoder.options)
    except DiskFullError as error:
        raise ImageError(str(error)) from error
    except OSError as error:
        if isinstance(error, FileExistsError) and path.parent.is_dir():
            raise ImageError(f"{path}: exists already; nothing was replaced.") from error
        raise ImageError(f"{path}: cannot be written ({error.strerror or error}).") from error
