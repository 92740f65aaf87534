"""Read photos as 8-bit sRGB arrays: for upscaling, evaluation and training alike.

16-bit files are scaled down and other colour spaces converted, so that no picture changes its look
on the way. Errors are ImageError, one sentence each.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError

from upsr_jax.files import exif

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 2**26  # the result has 16 times as many, 3 GiB of them
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels, the most that is read; cut it into parts."

# TIFF tags. Of 16-bit grey, Pillow decodes rightly what uses all 16 bits and means black by 0.
BITS_PER_SAMPLE, PHOTOMETRIC, ZERO_IS_BLACK = 258, 262, 1


class ImageError(ValueError):
    """A picture that cannot be read or written; the message names the file and the cure."""


def read_image(photo: str | Path | bytes) -> UInt8[np.ndarray, "h w c"]:
    """Read a photo as it is meant to be seen: upright, sRGB, 8 bits.

    Returns RGB, or RGBA if any pixel is not opaque; grey is repeated. Raises ImageError for
    anything but one whole still image of at most MAX_PIXELS pixels; nothing is decoded before the
    size is known. `photo` is a file or what one holds.
    """
    return read_photo(photo)[0]


def read_photo(photo: str | Path | bytes) -> tuple[UInt8[np.ndarray, "h w c"], Image.Exif]:
    """Read a photo as `read_image` does, and of its EXIF data what its result keeps."""
    with _open(photo) as image:
        return to_pixels(image), exif.read_kept(image)


def read_rgb(photo: str | Path | bytes, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """Read the colours of a photo, as `read_image` does, without its transparency.

    Hidden pixels get colours as `visible_colours` makes them. `photo` is a file or what one holds;
    errors then call it `name`.
    """
    with _open(photo, name) as image:
        pixels = _decode_plain_jpeg(image)
        if pixels is None:
            pixels = to_pixels(image)
    return visible_colours(pixels)


def visible_colours(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Take the colours of RGB or RGBA; what is hidden takes that of visible pixels nearby.

    A hidden pixel's own colour would bleed into the edges of what is seen.
    """
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    weight = alpha.astype(np.float32) / 255
    near = cv2.GaussianBlur(rgb * weight, (0, 0), 4) / (
        cv2.GaussianBlur(weight, (0, 0), 4)[..., None] + 1e-6
    )
    return np.where(alpha == 0, np.round(near).astype(np.uint8), rgb)


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
    # A profile is of one of these modes; alpha is apart from it.
    is_grey = image.mode in ("1", "L", "LA", "La")
    colours = "L" if is_grey else "CMYK" if image.mode == "CMYK" else "RGB"
    alpha = np.uint8(255)
    if image.has_transparency_data:
        image = image.convert("LA" if is_grey else "RGBA")
        alpha = np.asarray(image.getchannel("A"))
    pixels = np.asarray(_to_srgb(image.convert(colours)))
    return pixels if alpha.min() == 255 else np.dstack([pixels, alpha])


def read_note(path: str | Path) -> str | None:
    """Read the note that an image was written with, from its header; None if there is none."""
    try:
        # The result of a photo above 11 megapixels has more pixels than Pillow opens by itself
        with _without_limit(), Image.open(path) as image:
            return exif.read_note(image)
    except Exception:  # decoders raise anything on damaged files
        return None


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    """Let Pillow open files of any size, in all threads; `read_image` has its own limit."""
    with _lift(Image, "MAX_IMAGE_PIXELS", None):
        yield


_lifting = threading.Lock()
_lifted: dict[str, tuple[int, Any]] = {}  # by how many, and the limit there was before


@contextlib.contextmanager
def _lift(module: Any, name: str, limit: int | None) -> Iterator[None]:
    """Set a limit of Pillow's; one for all threads, it is set back by the last of them to leave."""
    with _lifting:
        count, before = _lifted.get(name, (0, getattr(module, name)))
        _lifted[name] = count + 1, before
        setattr(module, name, limit)
    try:
        yield
    finally:
        with _lifting:
            count, before = _lifted.pop(name)
            if count > 1:
                _lifted[name] = count - 1, before
            else:
                setattr(module, name, before)


@contextlib.contextmanager
def _open(photo: str | Path | bytes, name: str = "") -> Iterator[ImageFile.ImageFile]:
    """Open a photo, not decoded yet; what goes wrong with it, then or later, is an ImageError.

    Pillow warns of odd metadata: to be ignored, if at all, by a program and not for it.
    """
    try:
        _check_file(photo)
        file = io.BytesIO(photo) if isinstance(photo, bytes) else photo
        # Pillow takes a PNG for damaged if one of its texts is above 1 MiB, as of programs that
        # keep their whole work in it. The sum of all keeps its limit of 64 MiB.
        with (
            _lift(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY),
            Image.open(file, formats=READ_FORMATS) as image,
        ):
            _check_readable(image)
            yield image
    except Exception as error:  # decoders raise anything on damaged files
        name = name or ("image" if isinstance(photo, bytes) else str(photo))
        raise ImageError(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    match error:
        case ImageError():
            return str(error)
        case PermissionError():
            return "no permission to read it."
        case UnidentifiedImageError():
            return "not a whole JPEG, PNG, WebP, BMP or TIFF image; save it as one."
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return TOO_LARGE
    return f"damaged or cut short ({error}); get a whole copy."


def _check_file(photo: str | Path | bytes) -> None:
    if isinstance(photo, bytes):
        size = len(photo)
    elif not os.path.exists(photo):  # unlike Path.exists, it never raises
        raise ImageError("no such file.")
    elif not os.path.isfile(photo):
        raise ImageError("not a file.")
    else:
        size = os.path.getsize(photo)
    if size == 0:
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


def _decode_plain_jpeg(image: ImageFile.ImageFile) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode the commonest photo, a JPEG in sRGB and upright, as `to_pixels` does, but faster.

    Returns None for any other. Pillow takes three times as long, a fifth of a training example.
    """
    is_plain = image.format == "JPEG" and image.mode == "RGB" and not image.info.get("icc_profile")
    if not is_plain or exif.find_turn(image) is not None:
        return None
    assert image.fp is not None  # as nothing is decoded yet
    image.fp.seek(0)
    data = np.frombuffer(image.fp.read(), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey; Pillow's own conversion clips it."""
    grey = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    grey.info = image.info
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    try:
        source, target = io.BytesIO(profile), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, image.mode, "RGB")
    except ImageCms.PyCMSError:
        # Damaged, or meant for other channels: viewers show such a picture as sRGB too.
        return image.convert("RGB")
    return transform.apply(image)
