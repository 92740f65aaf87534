"""What a photo's EXIF data says: how to turn it, what its result keeps, and our note there.

Damaged data says nothing, and fails no photo.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {TURNS[number] for number in (5, 6, 7, 8)}  # these exchange height and width
NOTE = Base.Software  # the program that made an image, and here with what
SUBJECT_AREA = 0x9214  # which Pillow has no name for
KEPT = {  # of the first part, where a TIFF file also describes its pixels
    *(Base.ImageDescription, Base.Make, Base.Model, Base.DateTime, Base.Artist, Base.HostComputer),
    *(Base.Copyright, Base.Rating, Base.RatingPercent),
    *(Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject),
}
DROPPED = {  # of the others: pixels and colours of the source, and a block that can't be moved
    *(Base.ExifImageWidth, Base.ExifImageHeight, SUBJECT_AREA, Base.SubjectLocation),
    *(Base.FocalPlaneXResolution, Base.FocalPlaneYResolution, Base.FocalPlaneResolutionUnit),
    *(Base.ColorSpace, Base.ExifInteroperabilityOffset, Base.MakerNote),
}
MAX_BYTES = 65_533  # that a JPEG holds
START = b"Exif\0\0"  # of encoded data, as in a JPEG


def turn_upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data says; raises as `Image.load` does.

    `ImageOps.exif_transpose` also writes the data anew, and raises where that can't be.
    """
    image.load()  # which turns a TIFF file already, and drops its tag
    turn = find_turn(image)
    return image if turn is None else image.transpose(turn)


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """Find how an image's EXIF data says to turn it; None if it is upright."""
    with suppress(Exception):  # Pillow raises anything on damaged data
        return TURNS.get(image.getexif().get(Base.Orientation, 1))
    return None


def read_kept(image: Image.Image) -> Image.Exif:
    """Read EXIF data to keep: date, camera, place and words, not how the pixels are stored."""
    kept = Image.Exif()
    with suppress(Exception):
        found = image.getexif()
        for tag in found.keys() & KEPT:
            value = found[tag]
            # Pillow decodes texts as Latin-1, which often are UTF-8, but encodes them as ASCII
            kept[tag] = value.encode("latin-1") if isinstance(value, str) else value
        for part in (IFD.Exif, IFD.GPSInfo):
            tags = {tag: value for tag, value in found.get_ifd(part).items() if tag not in DROPPED}
            if tags:
                kept[part] = tags
    return kept


def encode(kept: Image.Exif, note: str) -> bytes:
    """Encode EXIF data, and a note where `read_note` finds it; that alone if the rest can't be."""
    for exif in _with_note(kept, note):
        with suppress(Exception):
            data = exif.tobytes() if exif else b""
            if len(data) <= MAX_BYTES:
                return data
    return b""


def as_tags(kept: Image.Exif, note: str) -> dict[int, Any]:
    """Give EXIF data as tags of a TIFF file, as `encode` encodes it."""
    for exif in _with_note(kept, note):
        tags = dict(exif)
        with suppress(Exception):
            directory = ImageFileDirectory_v2()
            for tag, value in tags.items():
                directory[tag] = value
            directory.tobytes()
            return tags
    return {}


def _with_note(kept: Image.Exif, note: str) -> Iterator[Image.Exif]:
    noted = {NOTE: note} if note else {}
    for tags in ({**kept, **noted}, noted):
        exif = Image.Exif()
        for tag, value in tags.items():
            exif[tag] = value
        yield exif


def read_note(image: Image.Image) -> str | None:
    """Read the note of an image from its header; raises anything if there is no EXIF data."""
    if isinstance(image, TiffImageFile):
        return image.tag_v2.get(NOTE)
    exif = Image.Exif()
    exif.load(image.info["exif"])  # getexif would decode all of a PNG to look behind it
    return exif.get(NOTE)
