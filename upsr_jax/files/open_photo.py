"""Open photos of all formats, and refuse what is damaged or costs too much, before it is decoded.

Errors are ImageError, one sentence each.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from upsr_jax.files import checks, deep, exif, plugins, tiffs
from upsr_jax.files.plugins import Opened

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 2**27  # the result has 16 times as many
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels, the most that is read; cut it into parts."
MAX_SIDE = 2**18  # as a row takes memory of its own
MAX_BYTES = 2**31  # of a file, and of what is in it; the largest picture has half as many
# In all scans of a JPEG, of which a progressive one has about ten: a minute
MAX_SCANNED = 2**31
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
FLOAT_FORMATS = (3, 6)  # of samples: real and complex numbers

checks.keep_quiet()


class ImageError(ValueError):
    """A picture that cannot be read or written; the message names the file and the cure."""


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
def open_result(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture of any size that was written, its pixels not decoded; raises anything."""
    with Path(path).open("rb") as file:
        if file.read(12).startswith(plugins.JXL_STARTS):
            image = plugins.open_jxl(Path(path).read_bytes()).image
            image.info["exif"] = exif.START + checks.find_box(file, b"Exif")[4:]
            yield image
            return
    # The result of a photo above 11 megapixels has more pixels than Pillow opens by itself
    with without_limit(), Image.open(path) as image:
        yield image


@contextlib.contextmanager
def open_photo(photo: str | Path | bytes, name: str) -> Iterator[Opened]:
    """Open a photo, not decoded yet; what goes wrong with it, then or later, is an ImageError.

    Pillow warns of odd metadata: to be ignored, if at all, by a program and not for it.
    """
    try:
        data = _read(photo)
        # Pillow takes a PNG for damaged if one of its texts is above 1 MiB, as of programs that
        # keep their whole work in it. The sum of all keeps its limit of 64 MiB.
        with _lift(PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_MEMORY):
            opened = _open(data)
            with opened.image:
                _check_cost(opened, data)
                yield opened
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(f"{name}: {_reason(error)}") from error


def _open(data: bytes) -> Opened:
    if opener := plugins.find_opener(data):
        return opener(data)
    if data[:4] in TIFF_STARTS:
        return _open_tiff(data)
    if data.startswith(checks.PNG_START):
        checks.check_png(data)
    image = Image.open(io.BytesIO(data), formats=READ_FORMATS)
    read_deep = None
    if image.format == "PNG" and deep.is_deep_png(data):
        read_deep = lambda: deep.read_deep_png(data)  # noqa: E731
    return Opened(image, image.width, image.height, image.format or "", read_deep)


def _open_tiff(data: bytes) -> Opened:
    pages = tiffs.list_pages(data)
    if plugins.is_raw(data, pages):
        return plugins.open_raw(data)
    numbers = [i for i, page in enumerate(pages) if not page.is_copy]
    if len(numbers) > 1 or len(pages) == tiffs.MAX_PAGES:
        raise ImageError("holds more than one picture; save the one you mean.")
    number = numbers[0] if numbers else 0
    page = pages[number]
    if set(page.all_of(tiffs.SAMPLE_FORMAT)) & set(FLOAT_FORMATS) or max(page.bits) > 16:
        raise ImageError(
            f"its pixels are floating-point or {max(page.bits)}-bit numbers; "
            "save it with 8 or 16 bits a channel."
        )
    is_ours = tiffs.is_ours(page)
    try:
        image = Image.open(io.BytesIO(data), formats=["TIFF"])
        assert isinstance(image, TiffImageFile)
        image.seek(number)
        _check_layout(image)
        size, is_deep_only = image.size, False
    except Exception:  # as it has no mode for it, or the wrong one
        if not is_ours:
            raise
        image = Image.open(io.BytesIO(tiffs.as_one_pixel(data, page)), formats=["TIFF"])
        size, is_deep_only = (page.get(tiffs.WIDTH, 0), page.get(tiffs.HEIGHT, 0)), True

    def read_deep() -> Any:
        checks.check_tiff(data, page.tags, MAX_BYTES)
        return deep.read_deep_tiff(data, page, image)

    return Opened(image, *size, "TIFF", read_deep if is_ours else None, is_deep_only)


def _reason(error: Exception) -> str:
    match error:
        case ImageError():
            return str(error)
        case plugins.MissingExtraError():
            return f"{error}."
        case PermissionError():
            return "no permission to read it."
        case UnidentifiedImageError():
            return "not a whole JPEG, PNG or other photo of a format that is read; save it as one."
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


def _check_cost(opened: Opened, data: bytes) -> None:
    pixels = opened.width * opened.height
    if pixels > MAX_PIXELS:
        raise ImageError(TOO_LARGE)
    if max(opened.width, opened.height) > MAX_SIDE:
        raise ImageError(f"a side of more than {MAX_SIDE:,} pixels; cut it into parts.")
    if opened.format in ("JPEG", "MPO"):
        most = MAX_SCANNED // pixels
        if data.count(checks.SCAN) > most and checks.count_scans(data) > most:
            raise ImageError(f"more than {most} scans; save it as a usual JPEG.")


def _check_layout(image: TiffImageFile) -> None:
    """Refuse what Pillow takes for a layout that it isn't."""
    tags = image.tag_v2
    bits, photometric = tags.get(tiffs.BITS, ()), tags.get(tiffs.PHOTOMETRIC)
    if image.mode.startswith("I;16") and (bits, photometric) != ((16,), tiffs.BLACK_IS_ZERO):
        raise ImageError("this kind of 16-bit TIFF is not supported; save it as 8-bit RGB.")
    is_raw = image.tile[0].codec_name == "raw"
    planes = 1
    if tags.get(tiffs.PLANAR) == tiffs.PLANES_APART:
        planes = len(image.getbands())
        if image.mode == "LA" or (is_raw and 16 in bits):
            raise ImageError("its channels are stored apart; save it with interleaved channels.")
    boxes = [tile.extents or (0, 0, *image.size) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    if is_raw and covered < planes * image.width * image.height:
        raise ValueError("strips are missing")
