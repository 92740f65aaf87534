"""What a result keeps of its photo beside the pixels: EXIF, XMP, IPTC, colour profile, DPI."""

from dataclasses import dataclass, field

from PIL import Image

from upsr_jax.files import exif as exif_data


@dataclass(frozen=True)
class Metadata:
    """What a photo's result keeps; empty where there is none.

    `exif` says nothing of the pixels, as `exif.read_kept` leaves it; `icc` is the profile that the
    pixels are to be shown with, sRGB where there is none; `dpi` is across and down.
    """

    exif: Image.Exif = field(default_factory=Image.Exif)
    xmp: bytes = b""
    iptc: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None


def read_metadata(image: Image.Image) -> Metadata:
    """Read what the result of an image keeps."""
    return Metadata(exif=exif_data.read_kept(image))
