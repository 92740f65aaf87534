"""Read photos as 8-bit sRGB arrays, and write results whole or not at all.

16-bit files are scaled down and other colour spaces converted, so that no picture changes its look
on the way. Results may hold EXIF data of their photo, and a note of how they were made.
Errors are ImageError, one sentence each.
"""

import contextlib
import errno
import fcntl
import io
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError

from upsr_jax import exif

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
READ_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
UNREAD_SUFFIXES = (".avif", ".avifs", ".gif", ".heic", ".heif", ".jp2", ".jxl")
MAX_PIXELS = 2**26  # the result has 16 times as many, 3 GiB of them
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels, the most that is read; cut it into parts."

# TIFF tags. Of 16-bit grey, Pillow decodes rightly what uses all 16 bits and means black by 0.
BITS_PER_SAMPLE, PHOTOMETRIC, ZERO_IS_BLACK = 258, 262, 1

# What a file system without hard links, or one that has too many, says to one more.
NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}

# Pillow takes a PNG for damaged if one of its texts is above 1 MiB, as of programs that keep their
# whole work in it. The sum of all keeps its limit of 64 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


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


class ImageError(ValueError):
    """A picture that cannot be read or written; the message names the file and the cure."""


def find_images(
    folder: str | Path,
    suffixes: tuple[str, ...] = READ_SUFFIXES,
    on_error: Callable[[OSError], None] | None = None,
) -> list[str]:
    """List the image files in a folder and its subfolders, by their suffix, sorted.

    Links are followed, but not in a circle; files and subfolders whose names begin with a dot are
    left out. There are none in a missing folder; one that cannot be read raises OSError, or is
    left out where that is given to `on_error`.
    """
    if not os.path.isdir(folder):
        return []
    return sorted(_walk(os.fspath(folder), (), suffixes, on_error))


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w c"]:
    """Read a photo as it is meant to be seen: upright, sRGB, 8 bits.

    Returns RGB, or RGBA if any pixel is not opaque. Raises ImageError for anything but one whole
    still image of at most MAX_PIXELS pixels; nothing is decoded before the size is known.
    """
    return read_photo(path)[0]


def read_photo(path: str | Path) -> tuple[UInt8[np.ndarray, "h w c"], Image.Exif]:
    """Read a photo as `read_image` does, and of its EXIF data what its result keeps."""
    with _open(path) as image:
        return to_pixels(image), exif.read_kept(image)


def count_pixels(path: str | Path) -> int:
    """Tell from its header how many pixels a photo has; raise ImageError as `read_image` does."""
    with _open(path) as image:
        return image.width * image.height


def to_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Turn an image of any common mode into upright 8-bit sRGB, RGBA if any pixel is not opaque."""
    image = exif.turn_upright(image)
    if image.mode.startswith("I;16") and not image.has_transparency_data:
        image = _scale_to_8_bits(image)
    if image.mode in ("I", "F", "LAB", "HSV") or image.mode.startswith("I;16"):
        raise ImageError(f"pixels of mode {image.mode} are not supported; save it as 8-bit RGB.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "CMYK"):  # those may have a profile of their own
        image = image.convert("RGB")
    pixels = np.asarray(_to_srgb(image))
    return pixels[..., :3] if pixels.shape[-1] == 4 and pixels[..., 3].min() == 255 else pixels


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


def read_note(path: str | Path) -> str | None:
    """Read the note that an image was written with, from its header; None if there is none.

    Pillow opens the results of photos above 11 megapixels only `without_limit`.
    """
    try:
        with Image.open(path) as image:
            return exif.read_note(image)
    except Exception:  # decoders raise anything on damaged files
        return None


@contextlib.contextmanager
def without_limit() -> Iterator[None]:
    """Let Pillow open files of any size, in all threads; `read_image` has its own limit."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _walk(
    folder: str,
    above: tuple[str, ...],
    suffixes: tuple[str, ...],
    on_error: Callable[[OSError], None] | None,
) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        if on_error is None:
            raise
        on_error(error)
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from _walk(path, (*above, real), suffixes, on_error)
        elif name.lower().endswith(suffixes):
            yield path


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Open a photo, not decoded yet; what goes wrong with it, then or later, is an ImageError."""
    try:
        _check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are checked here
            with Image.open(path, formats=READ_FORMATS) as image:
                _check_readable(image)
                yield image
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    match error:
        case ImageError():
            return str(error)
        case PermissionError():
            return "no permission to read it."
        case UnidentifiedImageError():
            return "not a whole JPEG, PNG, WebP, BMP or TIFF image; save it as one."
        case Image.DecompressionBombError():
            return TOO_LARGE
    return f"damaged or cut short ({error}); get a whole copy."


def _check_file(path: str | Path) -> None:
    if not os.path.exists(path):  # unlike Path.exists, it never raises
        raise ImageError("no such file.")
    if not os.path.isfile(path):
        raise ImageError("not a file.")
    if os.path.getsize(path) == 0:
        raise ImageError("the file is empty (0 bytes); get it again.")


def _check_readable(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(TOO_LARGE)
    # A phone's JPEG of format MPO hides a depth map or a second view behind the photo.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError("holds more than one picture; save the one you mean.")
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        layout = image.getexif().get(BITS_PER_SAMPLE), image.getexif().get(PHOTOMETRIC)
        if layout != (16, ZERO_IS_BLACK):
            raise ImageError("this kind of 16-bit TIFF is not supported; save it as 8-bit RGB.")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; Pillow's own conversion clips it."""
    grey = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    grey.info = image.info
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert(mode)
    try:
        source, target = io.BytesIO(profile), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, image.mode, mode)
    except ImageCms.PyCMSError:
        # Damaged, or meant for other channels: viewers show such a picture as sRGB too.
        return image.convert(mode)
    return transform.apply(image)


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
