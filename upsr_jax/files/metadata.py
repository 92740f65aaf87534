"""What a result keeps of its photo beside the pixels: EXIF, XMP, IPTC, colour profile, DPI.

Damaged data is left out, and fails no photo.
"""

import struct
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from xml.dom import minidom

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational

from upsr_jax.files import exif as exif_data

IPTC_IN_PHOTOSHOP, IPTC_IN_TIFF, XMP_IN_TIFF, ICC_IN_TIFF = 0x0404, 33723, 700, 34675
IPTC_IN_PNG = "Raw profile type iptc"  # as ImageMagick and ExifTool write it
INCHES, CENTIMETRES, INCH = 2, 3, 2.54
MAX_XMP = 2**20  # bytes; what is longer holds pictures
MAX_XMP_IN_JPEG = 65_000
# Of XMP, what tells of the pixels of the source, or of what was in its file beside them
NOT_KEPT = {
    "http://ns.adobe.com/tiff/1.0/": {
        *("Orientation", "ImageWidth", "ImageLength", "BitsPerSample", "Compression"),
        *("PhotometricInterpretation", "SamplesPerPixel", "PlanarConfiguration"),
        *("XResolution", "YResolution", "ResolutionUnit", "YCbCrSubSampling"),
    },
    "http://ns.adobe.com/exif/1.0/": {
        *("PixelXDimension", "PixelYDimension", "ColorSpace", "SubjectArea", "SubjectLocation"),
        *("FocalPlaneXResolution", "FocalPlaneYResolution", "FocalPlaneResolutionUnit"),
    },
    "http://ns.adobe.com/xap/1.0/": {"Thumbnails"},
    "http://ns.adobe.com/photoshop/1.0/": {"ICCProfile", "ColorMode"},
    "http://ns.adobe.com/xmp/note/": {"HasExtendedXMP"},
    **dict.fromkeys(  # panoramas, depth maps, bright pictures, films
        (
            *(
                "http://ns.google.com/photos/1.0/panorama/",
                "http://ns.google.com/photos/1.0/image/",
            ),
            *("http://ns.google.com/photos/1.0/camera/", "http://ns.adobe.com/hdr-gain-map/1.0/"),
            *("http://ns.google.com/photos/1.0/container/", "http://ns.apple.com/HDRGainMap/1.0/"),
            "http://ns.google.com/photos/1.0/depthmap/",
        )
    ),
}
PLACES = {  # where XMP names them
    "http://ns.adobe.com/photoshop/1.0/": {"City", "State", "Country"},
    "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/": {"Location", "CountryCode"},
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/": {"LocationShown", "LocationCreated"},
}
EXIF_IN_XMP = "http://ns.adobe.com/exif/1.0/"
IPTC_PLACES = {26, 27, 90, 92, 95, 100, 101}  # datasets of IPTC's record 2


@dataclass(frozen=True)
class Metadata:
    """What a photo's result keeps; empty where there is none.

    `exif` and `xmp` say nothing of the source's pixels; `icc` is the profile that the pixels are to
    be shown with, sRGB where there is none; `dpi` is across and down.
    """

    exif: Image.Exif = field(default_factory=Image.Exif)
    xmp: bytes = b""
    iptc: bytes = b""
    icc: bytes = b""
    dpi: tuple[float, float] | None = None

    def without_location(self) -> "Metadata":
        """Leave out where a photo was taken: coordinates, and names of places; not its title."""
        exif = Image.Exif()
        for tag, value in self.exif.items():
            if tag != IFD.GPSInfo:
                exif[tag] = value
        iptc = b"".join(
            record
            for number, dataset, record in _datasets(self.iptc)
            if not (number == 2 and dataset in IPTC_PLACES)
        )
        return replace(self, exif=exif, xmp=clean_xmp(self.xmp, places=True), iptc=iptc)


def read_metadata(image: Image.Image, icc: bytes = b"") -> Metadata:
    """Read what the result of an image keeps; `icc` is the profile that its pixels still need."""
    return Metadata(
        exif=exif_data.read_kept(image),
        xmp=clean_xmp(_read_xmp(image)),
        iptc=_read_iptc(image),
        icc=icc,
        dpi=_read_dpi(image),
    )


def _read_xmp(image: Image.Image) -> bytes:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return xmp.encode() if isinstance(xmp, str) else bytes(xmp)


def clean_xmp(xmp: bytes, places: bool = False) -> bytes:
    """Leave out of XMP what holds no longer for a result, and places if asked; b"" if damaged."""
    if not xmp or len(xmp) > MAX_XMP or b"<!" in xmp.replace(b"<!--", b""):
        return b""  # what declares entities is no XMP
    try:
        document = minidom.parseString(xmp.strip(b"\0 \n\r\t"))
        for element in list(document.getElementsByTagName("*")):
            for attribute in list(element.attributes.values()):
                if _is_dropped(attribute, places):
                    element.removeAttributeNode(attribute)
            if _is_dropped(element, places) and element.parentNode is not None:
                element.parentNode.removeChild(element)
        return "".join(node.toxml() for node in document.childNodes).encode()
    except Exception:  # the parser raises anything
        return b""


def _is_dropped(node: Any, places: bool) -> bool:
    space, name = node.namespaceURI, node.localName
    if places and (
        name in PLACES.get(space, ()) or (space == EXIF_IN_XMP and name.startswith("GPS"))
    ):
        return True
    return space in NOT_KEPT and (NOT_KEPT[space] is None or name in NOT_KEPT[space])


def _read_iptc(image: Image.Image) -> bytes:
    """Find IPTC's datasets as they are in a file; b"" if they are damaged."""
    found: Any = b""
    with suppress(Exception):
        tags = getattr(image, "tag_v2", {})
        if IPTC_IN_TIFF in tags:
            found = tags[IPTC_IN_TIFF]
            if isinstance(found, tuple):  # numbers, as Photoshop calls them
                found = b"".join(number.to_bytes(4, "little") for number in found)
        elif IPTC_IN_PNG in image.info:
            found = bytes.fromhex("".join(str(image.info[IPTC_IN_PNG]).split()[2:]))
        else:
            found = image.info.get("photoshop", {}).get(IPTC_IN_PHOTOSHOP, b"")
        start = found.find(b"8BIM\x04\x04")  # around it, in a PNG of ImageMagick
        found = found[start + 12 :] if start >= 0 else found
        return b"".join(record for _, _, record in _datasets(bytes(found)))
    return b""


def _datasets(iptc: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give record, dataset and all bytes of each dataset (IPTC IIM 4.2, 1.6); long ones end it."""
    place = 0
    while iptc[place : place + 1] == b"\x1c" and len(iptc) >= place + 5:
        length = int.from_bytes(iptc[place + 3 : place + 5])
        end = place + 5 + length
        if length >= 2**15 or end > len(iptc):
            return
        yield iptc[place + 1], iptc[place + 2], iptc[place:end]
        place = end


def _read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Read dots per inch where a file says them."""
    with suppress(Exception):
        dpi = image.info.get("dpi")
        if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit"):
            dpi = None  # Pillow makes up 72
        if not dpi:
            found = image.getexif()
            scale = INCH if found.get(Base.ResolutionUnit) == CENTIMETRES else 1
            dpi = (found[Base.XResolution] * scale, found[Base.YResolution] * scale)
        across, down = (round(float(number), 2) for number in dpi)
        if min(across, down) >= 2 and max(across, down) < 100_000:
            return across, down
    return None


def as_options(kept: Metadata, note: str, format: str) -> dict[str, Any]:
    """Give metadata as Pillow and `encode_jxl` take it; what is too long for a JPEG is left out."""
    exif = exif_data.encode(_with_dpi(kept), note)
    if format == "JPEG XL":
        return {"exif": exif.removeprefix(exif_data.START), "xmp": kept.xmp, "icc": kept.icc}
    options: dict[str, Any] = {"exif": exif, "xmp": kept.xmp, "icc_profile": kept.icc}
    if format == "JPEG":
        if len(kept.xmp) > MAX_XMP_IN_JPEG:
            del options["xmp"]
        if kept.dpi:
            options["dpi"] = kept.dpi
        if kept.iptc and len(kept.iptc) < MAX_XMP_IN_JPEG:
            # A segment of Photoshop's, whose blocks have an even length
            content = b"Photoshop 3.0\0" + _in_photoshop(kept.iptc)
            options["extra"] = b"\xff\xed" + struct.pack(">H", len(content) + 2) + content
    return {name: value for name, value in options.items() if value}


def as_chunks(kept: Metadata, note: str) -> list[tuple[bytes, bytes]]:
    """Give metadata as chunks of a PNG (W3C, 2025, section 11.3)."""
    chunks = []
    if kept.icc:
        chunks.append((b"iCCP", b"ICC\0\0" + zlib.compress(kept.icc)))
    if kept.dpi:
        per_metre = (round(number / 0.0254) for number in kept.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if data := exif_data.encode(kept.exif, note):
        chunks.append((b"eXIf", data.removeprefix(exif_data.START)))
    if kept.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + kept.xmp))
    if kept.iptc:
        block = _in_photoshop(kept.iptc)
        lines = "\n".join(textwrap.wrap(block.hex(), 72))
        text = f"\niptc\n{len(block):8}\n{lines}\n"
        chunks.append((b"zTXt", IPTC_IN_PNG.encode() + b"\0\0" + zlib.compress(text.encode())))
    return chunks


def as_tags(kept: Metadata, note: str) -> dict[int, Any]:
    """Give metadata as tags of a TIFF."""
    tags = exif_data.as_tags(_with_dpi(kept), note)
    blocks = {XMP_IN_TIFF: kept.xmp, IPTC_IN_TIFF: kept.iptc, ICC_IN_TIFF: kept.icc}
    return tags | {tag: block for tag, block in blocks.items() if block}


def _with_dpi(kept: Metadata) -> Image.Exif:
    if not kept.dpi:
        return kept.exif
    exif = Image.Exif()
    for tag, value in kept.exif.items():
        exif[tag] = value
    across, down = (IFDRational(round(100 * number), 100) for number in kept.dpi)
    exif[Base.XResolution], exif[Base.YResolution], exif[Base.ResolutionUnit] = across, down, INCHES
    return exif


def _in_photoshop(iptc: bytes) -> bytes:
    """Put IPTC into the block of Photoshop's that readers look for."""
    return b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)
