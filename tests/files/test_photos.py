"""Photos are read as they are meant to be seen or refused in one line; results are whole."""

import contextlib
import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from photos import draw_photo, photo
from PIL import Image, ImageCms, PngImagePlugin
from profiles import DISPLAY_P3, grey_profile, rgb_profile, srgb_of
from tiffs import make_dng, make_tiff

from upsr_jax.files import checks, open_photo, photos, whole
from upsr_jax.files.find import find_images
from upsr_jax.files.photos import (
    ImageError,
    count_pixels,
    read_image,
    read_note,
    read_photo,
    read_rgb,
    to_pixels,
)
from upsr_jax.files.write_photo import write_image

PHOTOS = Path(__file__).parents[2] / "upsr_jax" / "assets" / "photos"

RGB = photo(12, 20)
DRAWN = draw_photo(0, 60, 80)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height):
    """A valid PNG header with hardly any pixels behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(64))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
def test_lossless_files_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_are_read_closely(tmp_path, suffix):
    smooth = np.zeros((32, 48, 3), np.uint8) + np.arange(48, dtype=np.uint8)[:, None] * 5
    Image.fromarray(smooth).save(tmp_path / f"a.{suffix}", quality=95)
    found = read_image(tmp_path / f"a.{suffix}")
    assert np.abs(found.astype(int) - smooth).max() <= 6


def test_grey_palette_and_bilevel_become_rgb():
    grey = Image.fromarray(RGB[..., 0])
    expected = np.repeat(RGB[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(to_pixels(grey), expected)
    two = Image.fromarray((RGB[..., 0] > 127).astype(np.uint8) * 255)
    np.testing.assert_array_equal(to_pixels(two.convert("1")), np.asarray(two.convert("RGB")))
    palette = Image.fromarray(RGB[..., 0] % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])
    np.testing.assert_array_equal(to_pixels(palette), colours[RGB[..., 0] % 4])


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 300).astype(np.uint16).reshape(15, 20)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)
    found = read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found[..., 0], np.round(values / 257))


def test_16_bit_colour_is_scaled_not_clipped(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    assert np.abs(read_image(tmp_path / "a.png") - values / 257).max() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # EXIF 2.32, tag 0x112: where row 0 and column 0 of the stored image are on the upright one.
    store = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(np.ascontiguousarray(store(RGB))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_transparency_is_kept_and_opaque_alpha_dropped(tmp_path):
    rgba = np.dstack([RGB, RGB[..., 0]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgba)
    Image.fromarray(np.dstack([RGB, np.full_like(RGB[..., 0], 255)])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), RGB)


def test_transparent_palette_colour_becomes_alpha(tmp_path):
    palette = Image.fromarray(RGB[..., 0] % 2)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=1)
    alpha = read_image(tmp_path / "a.png")[..., 3]
    np.testing.assert_array_equal(alpha, np.where(RGB[..., 0] % 2, 0, 255))


def test_other_colour_spaces_become_srgb(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=rgb_profile(gamma=1.0))
    assert np.abs(read_image(tmp_path / "a.png") - srgb_of(RGB, gamma=1.0)).max() < 2


def test_a_grey_profile_holds_for_grey_with_transparency(tmp_path):
    grey, alpha = np.maximum(RGB[..., 0], 40), RGB[..., 1]  # tables are coarse in the dark
    profile = grey_profile(1.0)
    expected = srgb_of(grey[..., None].repeat(3, axis=-1), gamma=1.0)
    Image.fromarray(np.dstack([grey, alpha])).save(tmp_path / "a.png", icc_profile=profile)
    found = read_image(tmp_path / "a.png")
    assert np.abs(found[..., :3] - expected).max() < 2
    np.testing.assert_array_equal(found[..., 3], alpha)
    Image.fromarray(grey).save(
        tmp_path / "b.png", icc_profile=profile, transparency=int(grey[0, 0])
    )
    found = read_image(tmp_path / "b.png")
    assert np.abs(found[..., :3] - expected).max() < 2
    np.testing.assert_array_equal(found[..., 3], np.where(grey == grey[0, 0], 0, 255))


PHOTO = Image.open(PHOTOS / "rocket.jpg").crop((0, 0, 101, 67))


@pytest.mark.parametrize(
    "options",
    [
        *(dict(quality=quality) for quality in (5, 75, 95)),
        *(dict(subsampling=ratio) for ratio in ("4:4:4", "4:2:2", "4:2:0")),
        dict(progressive=True),
        dict(optimize=True, restart_marker_blocks=3),
        dict(keep_rgb=True),
        dict(exif=b"Exif\0\0junk"),
    ],
    ids=str,
)
def test_plain_jpegs_have_the_pixels_that_pillow_decodes(monkeypatch, options):
    file = io.BytesIO()
    PHOTO.save(file, "JPEG", **options)
    with monkeypatch.context() as patch:
        patch.setattr(photos, "to_pixels", lambda image: pytest.fail("not taken for plain"))
        found = read_rgb(file.getvalue())
    np.testing.assert_array_equal(found, np.asarray(Image.open(file)))


def test_what_a_file_holds_is_read_as_the_file_and_called_by_its_name(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    np.testing.assert_array_equal(read_rgb(data), read_rgb(tmp_path / "a.png"))
    for content, reason in ((b"", "empty"), (data[:-60], "cut short"), (b"text", "not a whole")):
        with pytest.raises(ImageError, match=rf"^shard\[3\]: .*{reason}"):
            read_rgb(content, "shard[3]")


def test_hidden_pixels_take_the_colour_of_visible_ones_nearby(tmp_path):
    rgba = np.full((20, 30, 4), (200, 100, 50, 255), np.uint8)
    rgba[:, 8:20] = 0, 255, 0, 0
    rgba[:, 20:, 3] = 1  # hardly visible, but it is
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(rgba).save(tmp_path / name, lossless=True, exact=True)
        found = read_rgb(tmp_path / name).astype(int)
        assert np.abs(found - (200, 100, 50)).max() <= 1


def test_srgb_and_damaged_profiles_change_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"junk"):
        Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("packed", [True, False])
def test_long_texts_are_no_damage(tmp_path, packed):
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "node " * 2**19, zip=packed)
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)


def test_limits_of_pillow_are_lifted_while_any_thread_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    first, second = open_photo.without_limit(), open_photo.without_limit()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 10**6
    text_limit = PngImagePlugin.MAX_TEXT_CHUNK
    Image.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"junk")
    read_image(tmp_path / "a.png")
    with pytest.raises(ImageError):
        read_image(tmp_path / "b.png")
    assert PngImagePlugin.MAX_TEXT_CHUNK == text_limit < PngImagePlugin.MAX_TEXT_MEMORY


def test_the_note_of_a_result_of_any_size_is_read(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", RGB, note="made here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_note(tmp_path / "a.png") == "made here"
    assert Image.MAX_IMAGE_PIXELS == 10


def test_one_pixel_is_an_image(tmp_path):
    Image.fromarray(RGB[:1, :1]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB[:1, :1])


def encoded(format, pixels: np.ndarray = RGB, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not a whole JPEG"),
        (encoded("JPEG")[:-30], "cut short"),
        (encoded("PNG")[:-60], "cut short"),
        (encoded("WEBP")[:-10], "cut short"),
        (encoded("BMP")[:-1], "cut short"),
        (encoded("TIFF")[:-1], "cut short"),
        (encoded("GIF")[:-200], "cut short"),
        (encoded("ICO"), "not a whole JPEG"),
        (png_claiming(12_000, 12_000), "more than 134,217,728 pixels"),
        (png_claiming(60000, 60000), "more than 134,217,728 pixels"),
        (png_claiming(2**31 - 1, 2**31 - 1), "more than 134,217,728 pixels"),
        (png_claiming(2, 2**25), "a side of more than 262,144 pixels"),
        (encoded("TIFF", RGB[..., 0].astype(np.int32)), "or 32-bit numbers; save it with 8 or 16"),
        (encoded("TIFF", RGB[..., 0].astype(np.float32)), "are floating-point"),
    ],
)
def test_bad_files_are_refused_in_one_line_naming_them(tmp_path, content, reason):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_picture_of_an_animation_is_read(tmp_path, caplog, format):
    path = tmp_path / "a.any"
    frames = [Image.fromarray(pixels) for pixels in (np.full_like(RGB, 90), RGB)]
    frames[0].save(path, format, save_all=True, append_images=frames[1:], quality=95)
    assert count_pixels(path) == RGB.shape[0] * RGB.shape[1]
    assert not caplog.messages
    assert np.abs(read_rgb(path).astype(int) - 90).max() <= 3
    assert caplog.messages == [f"{path}: an animation; only its first picture is read."]


@pytest.mark.parametrize("format", ["GIF", "AVIF"])
def test_still_pictures_of_animations_formats_are_read(caplog, format):
    pixels = np.full_like(RGB, 200)
    pixels[:, 10:] = 40
    found = read_rgb(encoded(format, pixels, quality=95))
    assert np.abs(found.astype(int) - pixels).max() <= 6
    assert not caplog.messages


def tiff_page(pixels: np.ndarray) -> tuple[dict[int, list[int]], list[bytes]]:
    """Tags and the strip of an interleaved RGB picture."""
    height, width, _ = pixels.shape
    tags = {256: [width], 257: [height], 258: [8, 8, 8], 262: [2], 277: [3]}
    return tags, [pixels.tobytes()]


@pytest.mark.parametrize("kind", [1, 4, 5])
def test_smaller_copies_and_masks_in_a_tiff_are_no_second_picture(kind):
    """NewSubfileType, TIFF 6.0, section 8, has a bit for each; some cameras put the copy first."""
    large, small = tiff_page(RGB), tiff_page(RGB[::2, ::2])
    small[0][254] = [kind]
    for pages in ((large, small), (large, small, small), (small, large)):
        np.testing.assert_array_equal(read_rgb(make_tiff(*pages)), RGB)


def test_several_pages_of_a_tiff_are_more_than_one_picture():
    page, small = tiff_page(RGB), tiff_page(RGB)
    small[0][254] = [1]
    for pages in ((page, page), (page, small, page), (page, *100 * [small])):
        with pytest.raises(ImageError, match=r"^it: holds more than one picture"):
            read_rgb(make_tiff(*pages), "it")


PLANES = {"LA": (1, 2), "RGB": (2, 3), "RGBA": (2, 4), "CMYK": (5, 4)}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
@pytest.mark.parametrize("kind", PLANES)
def test_16_bit_planes_apart_are_read_and_not_as_stripes(kind, layout, order):
    photometric, samples = PLANES[kind]
    planes = np.random.default_rng(0).integers(0, 2**16, (samples, 16, 16)).astype(f"{order}u2")
    tags = {256: [16], 257: [16], 258: [16] * samples, 262: [photometric], 277: [samples]}
    tags |= {284: [2], 338: [2]} if kind.endswith("A") else {284: [2]}
    tags |= {322: [16], 323: [16]} if layout == "tiles" else {}
    data = make_tiff((tags, [plane.tobytes() for plane in planes]), order=order, layout=layout)
    found = read_photo(data).pixels
    if kind == "CMYK":  # without a profile, in 8 bits
        ink = np.round(np.moveaxis(planes, 0, -1) / 257).astype(np.uint8)
        expected = np.asarray(Image.fromarray(ink, "CMYK").convert("RGB"))
    else:
        expected = np.moveaxis(planes, 0, -1)[..., [0, 0, 0, 1] if kind == "LA" else slice(None)]
    np.testing.assert_array_equal(found, expected)


def test_8_bit_planes_apart_are_read():
    tags = {256: [20], 257: [12], 258: [8] * 3, 262: [2], 277: [3], 284: [2]}
    planes = [np.ascontiguousarray(plane).tobytes() for plane in np.moveaxis(RGB, -1, 0)]
    np.testing.assert_array_equal(read_rgb(make_tiff((tags, planes))), RGB)
    with pytest.raises(ImageError, match="strips are missing"):
        read_rgb(make_tiff((tags, planes[:2])))
    tags |= {258: [8] * 2, 262: [1], 277: [2], 338: [2]}
    for compression, pack in ((1, bytes), (8, zlib.compress)):
        data = make_tiff((tags | {259: [compression]}, list(map(pack, planes[:2]))))
        np.testing.assert_array_equal(read_image(data), RGB[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])  # none, LZW, deflate and PackBits
@pytest.mark.parametrize("predictor", [1, 2])
def test_16_bit_tiffs_of_opencv_are_read_exactly(compression, predictor):
    pixels = np.random.default_rng(0).integers(0, 2**16, (50, 41, 3), np.uint16)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
    options += [cv2.IMWRITE_TIFF_ROWSPERSTRIP, 7]
    data = cv2.imencode(".tif", pixels[..., ::-1], options)[1]
    np.testing.assert_array_equal(read_photo(data.tobytes()).pixels, pixels)
    with pytest.raises(ImageError):
        read_photo(data.tobytes()[: len(data) // 2])


def test_white_as_zero_and_multiplied_colours_are_made_plain():
    grey = np.linspace(0, 65535, 80).astype(np.uint16)[None].repeat(4, 0)
    tags = {256: [80], 257: [4], 258: [16], 262: [0], 277: [1]}
    found = read_photo(make_tiff((tags, [(65535 - grey).tobytes()]))).pixels
    np.testing.assert_array_equal(found, grey[..., None].repeat(3, -1))
    alpha = np.full_like(grey, 40_000)
    multiplied = np.dstack([np.round(grey * (40_000 / 65535)).astype(np.uint16)] * 3 + [alpha])
    tags |= {258: [16] * 4, 262: [2], 277: [4], 338: [1]}
    found = read_photo(make_tiff((tags, [multiplied.tobytes()]))).pixels
    assert np.abs(found[..., 0].astype(int) - grey).max() <= 1
    assert (found[..., 3] == 40_000).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_pngs_stay_so(channels):
    shape = (12, 20, channels) if channels > 1 else (12, 20)
    values = np.random.default_rng(1).integers(0, 2**16, shape, np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    order = {1: [0, 0, 0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    expected = values.reshape(12, 20, channels)[..., order]
    np.testing.assert_array_equal(read_photo(data).pixels, expected)
    assert np.abs(read_image(data) - expected / 257).max() < 1
    for damaged in (data[:-40], data[:100], *flip_bits(data, range(len(data) - 60, len(data), 7))):
        with pytest.raises(ImageError):
            read_photo(damaged)


def test_a_16_bit_png_without_all_pixels_is_refused():
    """OpenCV leaves them black and says nothing."""
    rows = zlib.compress(bytes(5 * (1 + 6 * 8)))
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    with pytest.raises(ImageError, match="pixels are missing"):
        read_photo(data)


def test_wide_colours_are_kept_with_their_profile_and_others_become_srgb(tmp_path):
    profile = rgb_profile(DISPLAY_P3)
    Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, RGB)
    assert photo.kept.icc == profile
    assert np.abs(read_image(tmp_path / "a.png") - srgb_of(RGB, DISPLAY_P3)).max() < 2
    for profile in (rgb_profile(), b"junk", grey_profile(1.0)):
        Image.fromarray(RGB).save(tmp_path / "a.png", icc_profile=profile)
        assert not read_photo(tmp_path / "a.png").kept.icc
    lab = Image.fromarray(RGB).convert("RGB")
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    to_lab.apply(lab).save(tmp_path / "lab.tif")
    assert np.abs(read_photo(tmp_path / "lab.tif").pixels.astype(int) - RGB).mean() < 2


def test_16_bit_grey_of_a_profile_becomes_srgb_without_loss(tmp_path):
    grey = np.linspace(0, 65535, 4000).astype(np.uint16).reshape(40, 100)
    image = Image.fromarray(grey)
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    expected = srgb_of(grey[..., None].repeat(3, -1) / 257, gamma=1.0) * 257
    assert np.abs(photo.pixels - expected).max() < 2
    assert photo.is_grey and not photo.kept.icc


@pytest.mark.parametrize("bits", [8, 10])
def test_heic_is_read_with_all_its_bits(bits):
    row = np.linspace(0, 2**16 - 1, 64).astype(np.uint16)
    pixels = np.broadcast_to(row[:, None], (48, 64, 3)).copy()
    mode, data = ("RGB", (pixels >> 8).astype(np.uint8)) if bits == 8 else ("RGB;16", pixels)
    file = io.BytesIO()
    pillow_heif.from_bytes(mode, (64, 48), data.tobytes()).save(file, quality=-1)
    photo = read_photo(file.getvalue())
    assert photo.pixels.dtype == (np.uint8 if bits == 8 else np.uint16) and photo.format == "png"
    # Colours of half the resolution, and 2 to the power of `bits` steps
    assert np.abs(photo.pixels.astype(int) - data).max() <= (2 if bits == 8 else 200)
    assert np.abs(read_rgb(file.getvalue()).astype(int) - (pixels >> 8)).max() <= 2
    assert count_pixels_of(file.getvalue()) == 48 * 64
    with pytest.raises(ImageError):
        read_photo(file.getvalue()[:-40])


def count_pixels_of(data):
    with open_photo.open_photo(data, "it") as opened:
        return opened.width * opened.height


def test_camera_raw_is_developed(monkeypatch):
    sensor = np.linspace(1000, 60_000, 64 * 96).astype(np.uint16).reshape(64, 96)
    photo = read_photo(make_dng(sensor))
    assert photo.pixels.dtype == np.uint16 and photo.pixels.shape == (96, 64, 3)
    assert photo.format == "png" and photo.kept.exif[271] == b"Maker"
    # Turned clockwise, what was below is on the left, and it is brighter
    assert (np.diff(photo.pixels[48, 4:-4, 1].astype(int)) <= 0).all()
    assert np.ptp(photo.pixels[48, :, 1]) > 20_000
    assert read_image(make_dng(sensor)).dtype == np.uint8
    monkeypatch.setitem(sys.modules, "rawpy", None)
    with pytest.raises(ImageError, match=r"Camera RAW needs .* pip install 'upsr_jax\[photos\]'"):
        read_photo(make_dng(sensor))


def flip_bits(data: bytes, places: range) -> Iterator[bytes]:
    for place in places:
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def test_no_flipped_bit_of_a_png_is_taken():
    """Of the last ones in the pixels, Pillow takes a fifth."""
    data = encoded("PNG", DRAWN)
    np.testing.assert_array_equal(read_rgb(data), DRAWN)
    for flipped in flip_bits(data, range(len(data) - 300, len(data))):
        with pytest.raises(ImageError):
            read_rgb(flipped)


def test_a_png_with_the_pixels_of_another_is_not_taken():
    data, other = encoded("PNG"), encoded("PNG", 255 - RGB)
    assert len(data) == len(other)
    end = data.index(b"IEND") - 8  # where the checksum of the pixels is
    with pytest.raises(ImageError, match="checksum"):
        read_rgb(other[:end] + data[end:])


def test_no_flipped_bit_of_deflate_in_a_tiff_is_taken():
    tags, strips = tiff_page(DRAWN)
    packed = zlib.compress(strips[0])
    for compression in (32946, 8):
        data = make_tiff((tags | {259: [compression]}, [packed]))
        np.testing.assert_array_equal(read_rgb(data), DRAWN)
    end = data.index(packed) + len(packed)
    taken = 0
    for flipped in flip_bits(data, range(end - 300, end)):
        with contextlib.suppress(ImageError):
            np.testing.assert_array_equal(read_rgb(flipped), DRAWN)
            taken += 1
    assert taken <= 1  # the last bits are unused


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_a_hole_is_named_in_a_warning(tmp_path, caplog, capfd, mode, progressive):
    path = tmp_path / "a.jpg"
    PHOTO.convert(mode).save(path, progressive=progressive)
    data = path.read_bytes()
    read_rgb(path)
    assert not caplog.messages
    path.write_bytes(data[:-200] + bytes(100) + data[-100:])
    assert read_rgb(path).shape == (67, 101, 3)
    (message,) = caplog.messages
    assert re.fullmatch(rf"{path}: damaged, and may look wrong \(.*\); get a whole copy\.", message)
    assert capfd.readouterr() == ("", "")


def test_odd_subsampling_of_a_jpeg_is_no_damage(caplog):
    """With one block of brightness for four of each colour, all of them 128."""
    data = encoded("JPEG", np.full((16, 16, 3), 128, np.uint8), subsampling=0)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    header = bytearray(data[: scan + 14])
    header[frame + 14] = header[frame + 17] = 0x22
    # No difference and the end of the block, in the usual codes (T.81, K.3)
    bits = "00" + "1010" + 8 * ("00" + "00")
    pixels = int(bits + "11", 2).to_bytes(5)
    assert (read_rgb(bytes(header) + pixels + b"\xff\xd9") == 128).all()
    assert not caplog.messages


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate"])
def test_libraries_print_nothing_about_damage(capfd, compression):
    data = encoded("TIFF", compression=compression)
    with pytest.raises(ImageError):
        read_rgb(data[:8] + bytes(100) + data[108:])
    assert capfd.readouterr() == ("", "")


def test_what_costs_much_is_refused_before_it_costs_it(monkeypatch):
    jpeg = encoded("JPEG", np.zeros((2**12, 2**12), np.uint8), progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    png, (tags, _) = encoded("PNG"), tiff_page(RGB)
    profile = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(photos.simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than 128 scans"):
        read_rgb(jpeg[:-2] + 130 * last + jpeg[-2:])
    with pytest.raises(ImageError, match="more than one colour profile"):
        read_rgb(png[:33] + 2 * profile + png[33:])
    monkeypatch.setattr(open_photo, "MAX_BYTES", 700)
    monkeypatch.setattr(photos, "MAX_BYTES", 700)
    with pytest.raises(ImageError, match="more than 700 bytes"):
        read_rgb(png)
    with pytest.raises(ImageError, match="have no end"):
        read_rgb(make_tiff((tags | {259: [8]}, [zlib.compress(bytes(701))])))


def test_what_looks_like_scans_beside_the_picture_is_none():
    """As a phone's film behind a photo, or a thumbnail in it."""
    found = checks.count_scans(encoded("JPEG", progressive=True))
    assert found == 10  # libjpeg's own script of scans for colour
    data = encoded("JPEG", exif=b"Exif\0\0" + 50 * b"\xff\xda\0\0") + 50 * b"\xff\xda\0\0"
    assert checks.count_scans(data) == 1


def test_sizes_are_checked_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    path = tmp_path / "huge.png"
    path.write_bytes(png_claiming(12_000, 12_000))
    with pytest.raises(ImageError, match="pixels"):
        read_image(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    for name in ("gone.png", "g" * 300 + ".png"):
        with pytest.raises(ImageError, match=rf"{name}: no such file"):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="not a file"):
        read_image(tmp_path)


def test_images_are_found_at_any_depth(tmp_path):
    for name in (
        "b.png",
        "x/a.JPG",
        "x/y/c.webp",
        "notes.txt",
        "x/._a.JPG",
        ".trash/d.png",
        "e.jfif",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [os.path.relpath(path, tmp_path) for path in find_images(tmp_path)] == [
        "b.png",
        "e.jfif",
        "x/a.JPG",
        "x/y/c.webp",
    ]


@pytest.mark.parametrize("channels", [3, 4])
def test_written_png_is_exact_and_alone(tmp_path, channels):
    image = np.dstack([RGB, RGB[..., 0]])[..., :channels]
    path = tmp_path / "new" / "a.png"
    write_image(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def test_written_file_has_the_usual_permissions(tmp_path):
    write_image(tmp_path / "a.png", RGB)
    (tmp_path / "b.png").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b.png").stat().st_mode


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_results_are_close(tmp_path, suffix):
    smooth = np.zeros((32, 48, 3), np.uint8) + np.arange(48, dtype=np.uint8)[:, None] * 5
    write_image(tmp_path / f"a.{suffix}", smooth)
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - smooth).max() <= 6


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(ImageError, match="exists already"):
        write_image(path, RGB)
    assert path.read_bytes() == b"mine"
    write_image(path, RGB, overwrite=True)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert os.listdir(tmp_path) == ["a.png"]


def refuse_link(source, target):
    raise PermissionError(1, "Operation not permitted")


def test_file_systems_without_links_work_too(tmp_path, monkeypatch):
    monkeypatch.setattr(whole.os, "link", refuse_link)
    write_image(tmp_path / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB)
    (tmp_path / "b.png").write_bytes(b"mine")
    with pytest.raises(ImageError, match="exists"):
        write_image(tmp_path / "b.png", RGB)
    assert (tmp_path / "b.png").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_a_link_that_fails_otherwise_is_no_file_system_without_links(tmp_path, monkeypatch):
    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.os, "link", full_disk)
    with pytest.raises(ImageError, match="No space left"):
        write_image(tmp_path / "a.png", RGB)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(whole.os, "link", refuse_link)
    monkeypatch.setattr(whole.os, "replace", full_disk)
    with pytest.raises(ImageError, match="No space left"):
        write_image(tmp_path / "a.png", RGB)
    assert not list(tmp_path.iterdir())


def test_failed_writes_leave_nothing(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole.os, "fsync", full_disk)
    with pytest.raises(ImageError, match=r"a\.png could not be written \(No space left"):
        write_image(tmp_path / "a.png", RGB)
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ImageError, match=r"a\.png: cannot be written"):
        write_image(tmp_path / "out" / "a.png", RGB)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("a.webp", (4, 16384, 3), "at most 16383 pixels a side, not 16384x4"),
        ("a.jpg", (4, 65501, 3), "at most 65500"),
        ("a.jpg", (4, 4, 4), "no transparency"),
        ("a.gif", (4, 4, 3), "must end in"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, shape, reason):
    with pytest.raises(ImageError, match=reason):
        write_image(tmp_path / name, np.zeros(shape, np.uint8))
    assert not list(tmp_path.iterdir())


def test_grey_is_written_as_grey(tmp_path):
    grey, alpha = np.repeat(RGB[..., :1], 3, -1), RGB[..., 1]
    for name, pixels, mode in (
        ("a.png", grey, "L"),
        ("b.png", np.dstack([grey, alpha]), "LA"),
        ("c.jpg", grey, "L"),
        ("d.webp", grey, "RGB"),  # it holds no other
        ("e.png", RGB, "RGB"),
    ):
        write_image(tmp_path / name, pixels)
        with Image.open(tmp_path / name) as image:
            assert image.mode == mode
        found = read_image(tmp_path / name)
        if name.endswith("png"):
            np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_note_is_kept_in_the_file(tmp_path, suffix):
    image, note = np.full((8, 8, 3), 100, np.uint8), 'upsr_jax {"seed": 3}'
    write_image(tmp_path / f"noted{suffix}", image, note=note)
    write_image(tmp_path / f"bare{suffix}", image)
    assert read_note(tmp_path / f"noted{suffix}") == note
    assert read_note(tmp_path / f"bare{suffix}") is None
    np.testing.assert_array_equal(
        read_image(tmp_path / f"noted{suffix}"), read_image(tmp_path / f"bare{suffix}")
    )


def test_what_is_no_image_has_no_note(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    assert read_note(tmp_path / "text.png") is None
    assert read_note(tmp_path / "missing.png") is None
