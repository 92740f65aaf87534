"""Read photos as 8-bit sRGB arrays: for upscaling, evaluation and training alike.

16-bit files are scaled down and other colour spaces converted, so that no picture changes its look
on the way. Errors are ImageError, one sentence each.
"""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms, ImageFile, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from upsr_jax.files import checks, exif
from upsr_jax.files.metadata import Metadata, read_metadata

logger = logging.getLogger(__name__)

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
# What the result of each is, to be as the photo; all others become PNG
RESULT_FORMATS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "TIFF": "tiff",
    "AVIF": "avif",
}
MAX_PIXELS = 2**26  # the result has 16 times as many, 3 GiB of them
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels, the most that is read; cut it into parts."
MAX_SIDE = 2**18  # as a row takes memory of its own
MAX_BYTES = 2**30  # of a file, and of what is in it; the largest picture has half as many
# In all scans of a JPEG, of which a progressive one has about ten: half a minute
MAX_SCANNED = 2**30
MAX_PAGES = 100  # of a TIFF: it has a few smaller copies

# TIFF tags. Of 16-bit grey, Pillow decodes rightly what uses all 16 bits and means black by 0.
BITS_PER_SAMPLE, PHOTOMETRIC, ZERO_IS_BLACK = 258, 262, 1
PLANAR_CONFIGURATION, PLANES_APART = 284, 2
NEW_SUBFILE_TYPE, SMALLER_COPY, MASK = 254, 1, 4

checks.keep_quiet()


class ImageError(ValueError):
    """A picture that cannot be read or written; the message names the file and the cure."""


class Photo(NamedTuple):
    """A photo as it was read.

    `pixels` are RGB, or RGBA, not premultiplied, if any pixel is not opaque; upright, grey
    repeated. `kept` is what its result keeps, `format` what a result is written as that is to be as
    the photo: one of `write_photo.FORMATS`.
    """

    pixels: UInt8[np.ndarray, "h w c"]
    kept: Metadata
    format: str

    @property
    def is_grey(self) -> bool:
        """Whether R = G = B everywhere."""
        return all((row[:, :3] == row[:, :1]).all() for row in self.pixels)


def read_image(photo: str | Path | bytes) -> UInt8[np.ndarray, "h w c"]:
    """Read a photo as it is meant to be seen: upright, sRGB, 8 bits.

    Returns RGB, or RGBA if any pixel is not opaque; grey is repeated. Of an animation it is the
    first picture, with a warning; a JPEG whose pixels are damaged is read with a warning, too.
    Raises ImageError for anything else than one whole picture of at most MAX_PIXELS pixels; nothing
    is decoded before it is known what that costs. `photo` is a file or what one holds.
    """
    return read_photo(photo).pixels


def read_photo(photo: str | Path | bytes) -> Photo:
    """Read a photo as `read_image` does, and what its result keeps."""
    name = _name(photo)
    with _open(photo, name) as image:
        pixels, format = _decode(image, name), RESULT_FORMATS.get(image.format or "", "png")
        return Photo(pixels, read_metadata(image), format)


def read_rgb(photo: str | Path | bytes, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """Read the colours of a photo, as `read_image` does, without its transparency.

    Hidden pixels get colours as `visible_colours` makes them. `photo` is a file or what one holds;
    errors then call it `name`.
    """
    name = name or _name(photo)
    with _open(photo, name) as image:
        pixels = _decode(image, name)
    return visible_colours(pixels)


def _name(photo: str | Path | bytes) -> str:
    return "image" if isinstance(photo, bytes) else str(photo)


def visible_colours(pixels: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w 3"]:
    """Take the colours of RGB or RGBA; what is hidden takes that of visible pixels nearby.

    A hidden pixel's own colour would bleed into the edges of what is seen. `pixels` are uint8,
    uint16 or floats in 0..1.
    """
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    is_whole = np.issubdtype(pixels.dtype, np.integer)
    weight = alpha.astype(np.float32) / (np.iinfo(pixels.dtype).max if is_whole else 1)
    near = cv2.GaussianBlur(rgb * weight, (0, 0), 4) / (
        cv2.GaussianBlur(weight, (0, 0), 4)[..., None] + 1e-6
    )
    near = np.round(near) if is_whole else near
    return np.where(alpha == 0, near.astype(pixels.dtype), rgb)


def count_pixels(path: str | Path) -> int:
    """Tell from its header how many pixels a photo has; raise ImageError as `read_image` does."""
    height, width = read_size(path)
    return height * width


def read_size(photo: str | Path | bytes) -> tuple[int, int]:
    """Tell from its header the height and width of a photo, upright; raise as `read_image` does."""
    with _open(photo, _name(photo)) as image:
        is_turned = exif.find_turn(image) in exif.SIDEWAYS
        return (image.width, image.height) if is_turned else (image.height, image.width)


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
        with without_limit(), Image.open(path) as image:
            return exif.read_note(image)
    except Exception:  # decoders raise anything on damaged files
        return None


@contextlib.contextmanager
def without_limit() -> Iterator[None]:
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
def _open(photo: str | Path | bytes, name: str) -> Iterator[ImageFile.ImageFile]:
    """Open a photo, not decoded yet; what goes wrong with it, then or later, is an ImageError.

    Pillow warns of odd metadata: to be ignored, if at all, by a program and not for it.
    """
    try:
        data = _read(photo)
        if data.startswith(checks.PNG_START):
            checks.check_png(data)
        # Pillow takes a PNG for damaged if one of its texts is above 1 MiB, as of programs that
        # keep their whole work in it. The sum of all keeps its limit of 64 MiB.
        with (
            _lift(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY),
            Image.open(io.BytesIO(data), formats=READ_FORMATS) as image,
        ):
            if isinstance(image, TiffImageFile):
                _choose_page(image)
            _check_readable(image, data)
            yield image
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    match error:
        case ImageError():
            return str(error)
        case PermissionError():
            return "no permission to read it."
        case UnidentifiedImageError():
            return "not a whole JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF image; save it as one."
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return TOO_LARGE
    reason = " ".join(str(error).split())
    return f"damaged or cut short ({reason}); get a whole copy."


def _read(photo: str | Path | bytes) -> bytes:
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
    if size > MAX_BYTES:
        raise ImageError(f"more than {MAX_BYTES:,} bytes, the most that is read; save it as PNG.")
    return photo if isinstance(photo, bytes) else Path(photo).read_bytes()


def _choose_page(image: TiffImageFile) -> None:
    """Turn to the one page of a TIFF that is no smaller copy of another and no mask."""
    pages = []
    for number in range(MAX_PAGES):
        try:
            with contextlib.suppress(SyntaxError):  # a copy of a kind that Pillow can't decode
                image.seek(number)
        except EOFError:
            break
        if not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & (SMALLER_COPY | MASK):
            pages.append(number)
        if len(pages) > 1 or number == MAX_PAGES - 1:
            raise ImageError("holds more than one picture; save the one you mean.")
    image.seek(pages[0] if pages else 0)


def _check_readable(image: Image.Image, data: bytes) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(TOO_LARGE)
    if max(image.size) > MAX_SIDE:
        raise ImageError(f"a side of more than {MAX_SIDE:,} pixels; cut it into parts.")
    if image.format in ("JPEG", "MPO"):
        most = MAX_SCANNED // pixels
        if data.count(checks.SCAN) > most and checks.count_scans(data) > most:
            raise ImageError(f"more than {most} scans; save it as a usual JPEG.")
    if isinstance(image, TiffImageFile):
        _check_layout(image)


def _check_layout(image: TiffImageFile) -> None:
    """Refuse what Pillow takes for a layout that it isn't."""
    tags = image.tag_v2
    bits, photometric = tags.get(BITS_PER_SAMPLE, ()), tags.get(PHOTOMETRIC)
    if image.mode.startswith("I;16") and (bits, photometric) != ((16,), ZERO_IS_BLACK):
        raise ImageError("this kind of 16-bit TIFF is not supported; save it as 8-bit RGB.")
    is_raw = image.tile[0].codec_name == "raw"
    planes = 1
    if tags.get(PLANAR_CONFIGURATION) == PLANES_APART:
        planes = len(image.getbands())
        if image.mode == "LA" or (is_raw and 16 in bits):
            raise ImageError("its channels are stored apart; save it with interleaved channels.")
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if is_raw and covered < planes * image.width * image.height:
        raise ValueError("strips are missing")


def _decode(image: ImageFile.ImageFile, name: str) -> UInt8[np.ndarray, "h w c"]:
    if isinstance(image, TiffImageFile):
        assert isinstance(image.fp, io.BytesIO)
        checks.check_tiff(image.fp.getvalue(), image.tag_v2, MAX_BYTES)
    # A phone's JPEG of format MPO hides a depth map or a second view behind the photo.
    elif image.format in ("JPEG", "MPO"):
        return _decode_jpeg(image, name)
    elif getattr(image, "is_animated", False):
        logger.warning("%s: an animation; only its first picture is read.", name)
    return to_pixels(image)


def _decode_jpeg(image: ImageFile.ImageFile, name: str) -> UInt8[np.ndarray, "h w c"]:
    """Decode a JPEG as Pillow does, in less time, and tell of damage that Pillow passes over.

    The depth map or second view behind a phone's photo, of format MPO, is left out.
    """
    assert isinstance(image.fp, io.BytesIO)
    colours = {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
    try:
        pixels = simplejpeg.decode_jpeg(image.fp.getvalue(), colours)
    except ValueError as error:
        found = to_pixels(image)  # raises if it is cut short
        if "subsampling" not in str(error):  # of a rare kind, which only Pillow decodes
            logger.warning("%s: damaged, and may look wrong (%s); get a whole copy.", name, error)
        return found
    if image.mode == "CMYK":  # which the libraries call differently, and is rare
        return to_pixels(image)
    is_plain = image.mode == "RGB" and not image.info.get("icc_profile")
    if is_plain and exif.find_turn(image) is None:
        return pixels
    decoded = Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])
    decoded.info = image.info
    return to_pixels(decoded)


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
