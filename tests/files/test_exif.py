"""EXIF data tells of the photo in its result, whatever the format and however damaged."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from upsr_jax.files.metadata import Metadata
from upsr_jax.files.photos import read_image, read_note, read_photo
from upsr_jax.files.write_photo import write_image

PIXELS = np.full((8, 12, 3), 100, np.uint8)
DATE = "2024:01:02 03:04:05"
PLACE = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (IFDRational(52), IFDRational(31), IFDRational(1234, 100)),
}
LAYOUT = {*range(256, 260), 262, 273, 277, 278, 279, 284, 317, 338}  # a TIFF's, of its pixels
KEPT = {Base.DateTimeOriginal: DATE, Base.ExposureTime: IFDRational(1, 125)}


def photo(path):
    """Write a photo as a phone does: turned, with a place, and with what tells of its pixels."""
    exif = Image.Exif()
    exif.update({Base.Make: "Camera", Base.DateTime: DATE, Base.Orientation: 6})
    exif.update({Base.Software: "phone 1.0", Base.Artist: "Zoë".encode()})
    gone = {Base.ExifImageWidth: 12, Base.ColorSpace: 65535, Base.MakerNote: b"offsets"}
    exif[IFD.Exif] = {**KEPT, **gone}
    exif[IFD.GPSInfo] = PLACE
    Image.fromarray(PIXELS).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.webp", "b.tif", "b.avif"])
def test_date_camera_and_place_are_kept(tmp_path, source, target):
    pixels, kept, _ = read_photo(photo(tmp_path / source))
    assert pixels.shape == (12, 8, 3)
    write_image(tmp_path / target, pixels, note="made here", kept=kept)
    assert read_note(tmp_path / target) == "made here"
    with Image.open(tmp_path / target) as image:
        exif = image.getexif()
        parts = exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)
    assert (exif[Base.Make], exif[Base.DateTime]) == ("Camera", DATE)
    if source != "a.tif":  # where Pillow, writing this test's photo, drops what is not ASCII
        assert exif[Base.Artist].encode("latin-1").decode() == "Zoë"
    assert exif.keys() - LAYOUT == {
        *(Base.Make, Base.DateTime, Base.Artist, Base.Software, IFD.Exif, IFD.GPSInfo)
    }
    assert parts == (KEPT, PLACE)
    assert read_image(tmp_path / target).shape == (12, 8, 3)  # not turned once more


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "data",
    [
        b"Exif\0\0",
        b"Exif\0\0junk, and more of it",
        b"junk",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, which the command ignores too
def test_damaged_data_fails_no_photo(tmp_path, format, data):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, exif=data)
    (tmp_path / "a").write_bytes(file.getvalue())
    pixels, kept, _ = read_photo(tmp_path / "a")
    assert np.abs(pixels.astype(int) - PIXELS).max() <= 2
    write_image(tmp_path / "b.jpg", pixels, note="made here", kept=kept)
    assert read_note(tmp_path / "b.jpg") == "made here"


def test_a_photo_is_turned_whose_data_can_not_be_written_again(tmp_path):
    # A turn by 90 degrees, and a unit of resolution in words where a number must be
    tags = ((Base.Orientation, 3, 1, b"\6\0\0\0"), (Base.ResolutionUnit, 2, 4, b"inch"))
    data = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHI4s", *tag) for tag in tags) + bytes(4)
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=data)
    assert read_image(tmp_path / "a.jpg").shape == (12, 8, 3)


@pytest.mark.parametrize("bad", [{Base.Make: object()}, {Base.ImageDescription: "x" * 70_000}])
def test_what_can_not_be_written_is_left_out(tmp_path, bad):
    exif = Image.Exif()
    exif.update(bad)
    write_image(tmp_path / "a.jpg", PIXELS, note="made here", kept=Metadata(exif))
    assert read_note(tmp_path / "a.jpg") == "made here"
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif().keys() == {Base.Software}


def test_without_any_nothing_is_made_up(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif")  # whose tags describe its pixels
    pixels, kept, _ = read_photo(tmp_path / "a.tif")
    write_image(tmp_path / "b.png", pixels, kept=kept)
    with Image.open(tmp_path / "b.png") as image:
        assert not image.getexif()
