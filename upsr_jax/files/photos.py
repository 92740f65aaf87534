"""Read photos: as they are, for upscaling, or as 8-bit sRGB, for evaluation and training.

Errors are ImageError, one sentence each.
"""

import io
import logging
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from upsr_jax.files import checks, colours, deep, exif
from upsr_jax.files.metadata import Metadata, read_metadata
from upsr_jax.files.open_photo import MAX_BYTES, ImageError, open_photo, open_result
from upsr_jax.files.plugins import Opened

logger = logging.getLogger(__name__)

# What the result of each is, to be as the photo; all others become PNG
RESULT_FORMATS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "JXL": "jxl",
}
ROWS = 256  # that are copied at once


class Photo(NamedTuple):
    """A photo as it was read.

    `pixels` are RGB, or RGBA, not premultiplied, if any pixel is not opaque; upright, grey
    repeated. `kept` is what its result keeps, `format` what a result is written as that is to be as
    the photo: one of `write_photo.FORMATS`.
    """

    pixels: UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"]
    kept: Metadata
    format: str

    @property
    def is_grey(self) -> bool:
        """Whether R = G = B everywhere, and no profile makes another grey of that."""
        return not self.kept.icc and all((row[:, :3] == row[:, :1]).all() for row in self.pixels)


def read_image(photo: str | Path | bytes) -> UInt8[np.ndarray, "h w c"]:
    """Read a photo as it is meant to be seen: upright, sRGB, 8 bits.

    Returns RGB, or RGBA if any pixel is not opaque; grey is repeated. Of an animation it is the
    first picture, with a warning; a JPEG whose pixels are damaged is read with a warning, too.
    Raises ImageError for anything else than one whole picture of at most MAX_PIXELS pixels; nothing
    is decoded before it is known what that costs. `photo` is a file or what one holds.
    """
    return read_srgb(photo).pixels


def read_srgb(photo: str | Path | bytes) -> Photo:
    """Read a photo as `read_image` does, and what its result keeps."""
    name = _name(photo)
    with open_photo(photo, name) as opened:
        pixels = _read_8_bits(opened, name)
        return Photo(pixels, read_metadata(opened.image), result_format(opened))


def result_format(opened: Opened) -> str:
    """Name the format that the result of a photo is written in, to be as the photo."""
    return RESULT_FORMATS.get(opened.format, "png")


def read_photo(photo: str | Path | bytes) -> Photo:
    """Read a photo as it is, and what its result keeps.

    Pixels have 16 bits where the file has more than 8 (10 and 12 bits are scaled), and the colours
    of an RGB profile that is not sRGB, which is kept. Grey, CMYK and Lab become sRGB. Otherwise it
    is as `read_image`, errors included.
    """
    name = _name(photo)
    with open_photo(photo, name) as opened:
        if opened.read_deep is None:
            if opened.format == "JXL":
                opened.image.load()  # which alone finds the profile
            profile = colours.own_profile(opened.image.info.get("icc_profile"), opened.image.mode)
            if profile:
                del opened.image.info["icc_profile"]
            pixels = _decode(opened.image, name)
        else:
            pixels, profile = _read_deep(opened)
        return Photo(pixels, read_metadata(opened.image, profile), result_format(opened))


def _read_8_bits(opened: Opened, name: str) -> UInt8[np.ndarray, "h w c"]:
    if not opened.is_deep_only:
        return _decode(opened.image, name)
    pixels, profile = _read_deep(opened)
    pixels = deep.to_8_bits(pixels)
    if not profile:
        return pixels
    image = Image.fromarray(pixels[..., :3])
    image.info["icc_profile"] = profile
    return np.dstack([np.asarray(colours.to_srgb(image)), pixels[..., 3:]])


def _read_deep(
    opened: Opened,
) -> tuple[UInt8[np.ndarray, "h w c"] | UInt16[np.ndarray, "h w c"], bytes]:
    """Decode what Pillow can't, to RGB or RGBA, and find the profile that it is to keep."""
    assert opened.read_deep is not None
    image = opened.image
    profile = image.info.get("icc_profile")
    upright = None if opened.is_upright else exif.find_turn(image)
    pixels = deep.turn(opened.read_deep(), upright)
    if pixels.shape[2] > 2:
        return deep.to_rgb(pixels), colours.own_profile(profile, "RGB")
    if profile:
        grey = colours.grey_to_srgb(np.ascontiguousarray(pixels[..., 0]), profile)
        pixels = np.dstack([grey, pixels[..., 1:]])
    return deep.to_rgb(pixels), b""


def read_rgb(photo: str | Path | bytes, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
    """Read the colours of a photo, as `read_image` does, without its transparency.

    Hidden pixels get colours as `visible_colours` makes them. `photo` is a file or what one holds;
    errors then call it `name`.
    """
    name = name or _name(photo)
    with open_photo(photo, name) as opened:
        pixels = _read_8_bits(opened, name)
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
    with open_photo(photo, _name(photo)) as opened:
        is_turned = not opened.is_upright and exif.find_turn(opened.image) in exif.SIDEWAYS
        height, width = opened.height, opened.width
        return (width, height) if is_turned else (height, width)


def to_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """Turn an image of any common mode into upright 8-bit sRGB, RGBA if any pixel is not opaque."""
    image = exif.turn_upright(image)
    if image.mode.startswith("I;16") and not image.has_transparency_data:
        image = _scale_to_8_bits(image)
    if image.mode in ("I", "F", "HSV") or image.mode.startswith("I;16"):
        raise ImageError(f"pixels of mode {image.mode} are not supported; save it as 8-bit RGB.")
    # A profile is of one of these modes; alpha is apart from it.
    is_grey = image.mode in ("1", "L", "LA", "La")
    mode = "L" if is_grey else image.mode if image.mode in ("CMYK", "LAB") else "RGB"
    alpha = np.uint8(255)
    if image.has_transparency_data:
        image = image.convert("LA" if is_grey else "RGBA")
        alpha = np.asarray(image.getchannel("A"))
    # No copy of a picture that takes much memory, as `convert` makes one in any case
    image = image if image.mode == mode else image.convert(mode)
    pixels = _to_array(colours.to_srgb(image))
    return pixels if alpha.min() == 255 else np.dstack([pixels, alpha])


def _to_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Make an array of an RGB image; all at once would take its memory three times."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS):
        part = pixels[top : top + ROWS]
        part[:] = np.array(image.crop((0, top, image.width, top + len(part))))
    return pixels


def read_note(path: str | Path) -> str | None:
    """Read the note that an image was written with, from its header; None if there is none."""
    try:
        with open_result(path) as image:
            return exif.read_note(image)
    except Exception:  # decoders raise anything on damaged files
        return None


def _decode(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w c"]:
    if isinstance(image, TiffImageFile):
        assert isinstance(image.fp, io.BytesIO)
        checks.check_tiff(image.fp.getvalue(), image.tag_v2, MAX_BYTES)
    # A phone's JPEG of format MPO hides a depth map or a second view behind the photo.
    elif image.format in ("JPEG", "MPO"):
        return _decode_jpeg(image, name)
    elif getattr(image, "is_animated", False):
        logger.warning("%s: an animation; only its first picture is read.", name)
    return to_pixels(image)


def _decode_jpeg(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w c"]:
    """Decode a JPEG as Pillow does, in less time, and tell of damage that Pillow passes over.

    The depth map or second view behind a phone's photo, of format MPO, is left out.
    """
    assert isinstance(image, ImageFile.ImageFile) and isinstance(image.fp, io.BytesIO)
    space = {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
    try:
        pixels = simplejpeg.decode_jpeg(image.fp.getvalue(), space)
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
