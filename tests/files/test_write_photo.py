"""Pictures come in bands and are whole files, exact where the format is."""

import io

import cv2
import numpy as np
import pytest
from photos import draw_photo
from PIL import Image

from upsr_jax.files.metadata import Metadata
from upsr_jax.files.photos import ImageError, Photo, read_image
from upsr_jax.files.write_photo import (
    check_storable,
    choose_format,
    is_whole,
    write_bands,
    write_photo,
)


def bands(pixels, rows=10):
    for top in range(0, len(pixels), rows):
        yield pixels[top : top + rows]


def draw(channels, bits):
    """Half smooth, half noise, so that each of a PNG's filters has its rows."""
    rng = np.random.default_rng(channels)
    noise = rng.integers(0, 256, (60, 53, 4), np.uint8)
    smooth = np.dstack([draw_photo(0, 60, 53), draw_photo(1, 60, 53)[..., 0]])
    pixels = np.concatenate([smooth, noise], axis=1)[..., : max(channels, 3)]
    pixels = pixels[..., :3] if channels == 1 else pixels
    if channels == 2:
        pixels = pixels[..., [0, 0, 0, 1]]
    return pixels if bits == 8 else pixels.astype(np.uint16) * 257 - rng.integers(0, 2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("format", ["png", "tiff"])
def test_bands_become_an_exact_picture(monkeypatch, format, channels):
    monkeypatch.setattr("upsr_jax.files.write_photo.BLOCK", 2000)
    pixels = draw(channels, 8)
    file = io.BytesIO()
    write_bands(file, bands(pixels), 60, pixels.shape[1], format, is_grey=channels < 3)
    with Image.open(file) as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        found = np.asarray(image).reshape(60, pixels.shape[1], channels)
    expected = {1: pixels[..., :1], 2: pixels[..., 2:]}.get(channels, pixels)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("format", "channels"), [("png", 1), ("png", 3), ("png", 4), ("tiff", 3)])
def test_16_bit_bands_become_an_exact_picture(monkeypatch, format, channels):
    """As OpenCV reads it."""
    monkeypatch.setattr("upsr_jax.files.write_photo.BLOCK", 2000)
    pixels = np.random.default_rng(0).integers(0, 2**16, (60, 53, max(channels, 3)), np.uint16)
    file = io.BytesIO()
    write_bands(file, bands(pixels), 60, pixels.shape[1], format, is_grey=channels == 1)
    found = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)
    expected = pixels[..., 0] if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]]
    np.testing.assert_array_equal(found, expected)


def test_a_large_tiff_is_a_big_one(monkeypatch):
    monkeypatch.setattr("upsr_jax.files.write_tiff.CLASSIC", 1000)
    pixels = draw(3, 8)
    file = io.BytesIO()
    write_bands(file, bands(pixels), 60, pixels.shape[1], "tiff", note="made here")
    assert file.getvalue()[:4] == b"II+\0"  # BigTIFF's
    np.testing.assert_array_equal(read_image(file.getvalue()), pixels)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_bytes_do_not_depend_on_the_bands(format):
    pixels = draw(3, 8)
    files = []
    for rows in (1, 7, 60):
        files.append(io.BytesIO())
        write_bands(files[-1], bands(pixels, rows), 60, pixels.shape[1], format)
    assert len({file.getvalue() for file in files}) == 1


def test_bands_that_are_no_whole_picture_leave_no_file(tmp_path):
    pixels = draw(3, 8)
    height, width, _ = pixels.shape
    for given in (bands(pixels[:-1]), bands(pixels[:, :-1]), iter(())):
        with pytest.raises(ValueError, match=r"rows"):
            write_photo(tmp_path / "a.png", given, height, width)

    def cancelled():
        yield pixels[:10]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_photo(tmp_path / "a.tif", cancelled(), height, width)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "avif"])
def test_what_was_cut_short_is_not_whole(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    pixels = draw_photo(0, 60, 80)
    write_photo(path, bands(pixels), 60, 80, note="made here")
    assert is_whole(path, 60 * 80) and not is_whole(path, 60 * 81)
    data = path.read_bytes()
    for end in (len(data) // 2, -2):
        path.write_bytes(data[:end])
        assert not is_whole(path, 60 * 80)


def test_quality_is_heeded():
    sizes = []
    for quality in (20, 60, 95):
        for format in ("jpg", "webp", "avif"):
            file = io.BytesIO()
            write_bands(file, [draw_photo(0, 60, 80)], 60, 80, format, quality)
            sizes.append(len(file.getvalue()))
    for one, two in zip(sizes, sizes[3:], strict=False):
        assert one < two


def test_the_format_of_a_result_is_the_photos_own_if_that_holds_it():
    rgb, rgba = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 4), np.uint8)

    def choose(pixels, format, wanted="auto", **size):
        return choose_format(wanted, Photo(pixels, Metadata(), format), **size)

    assert choose(rgb, "jpg") == choose(rgba, "png", "jpg") == "jpg"
    assert choose(rgba, "jpg") == choose(rgb.astype(np.uint16), "webp") == "png"
    assert choose(rgba.astype(np.uint16), "tiff") == "tiff"
    assert choose(rgb, "webp", height=20_000, width=8) == "png"
    with pytest.raises(ValueError, match=r"no format 'gif': choose auto, png"):
        choose(rgb, "png", "gif")


def test_what_a_format_cannot_hold_is_said():
    check_storable("tiff", 10**6, 10**6, has_alpha=True, bits=16)
    for format, reason in (("jpg", "holds 8 bits"), ("avif", "at most 268,435,456 pixels")):
        with pytest.raises(ImageError, match=reason):
            check_storable(format, 17_000, 17_000, has_alpha=False, bits=16)
