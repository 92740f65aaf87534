"""A file is the same picture wherever it is read: in training, evaluation and upscaling."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from photos import save
from PIL import Image
from profiles import ADOBE_RGB, DISPLAY_P3, PROPHOTO, grey_profile, rgb_profile, srgb_of
from test_records import write_folder
from tiffs import make_tiff

from upsr_jax import Upscaler
from upsr_jax.data.sources import open_source
from upsr_jax.data.test_sets import ImageSet, find_entries, make_read_fn
from upsr_jax.files.colours import to_srgb
from upsr_jax.files.deep import to_8_bits
from upsr_jax.files.photos import read_photo
from upsr_jax.upscale.restore import Restoration

RGB = np.random.default_rng(0).integers(40, 220, (24, 16, 3), np.uint8)
GREY = RGB[..., :1].repeat(3, axis=-1)
SMOOTH = cv2.resize(RGB[:3, :2], (16, 24), interpolation=cv2.INTER_LINEAR)
# Visible, half visible and hidden; what is visible has one colour
ALPHA = np.full((24, 16), 255, np.uint8)
ALPHA[:, 8:10], ALPHA[:, 10:] = 128, 0
COLOUR = np.full((24, 16, 3), (200, 100, 50), np.uint8)
HALF_HIDDEN = np.dstack(
    [np.where(ALPHA[..., None] == 0, np.array((0, 255, 0), np.uint8), COLOUR), ALPHA]
)


def save_16_bits(path, pixels):
    cv2.imwrite(str(path), pixels[..., ::-1].astype(np.uint16) * 257)


def save_associated(path):
    """Colours multiplied by alpha (TIFF 6.0, ExtraSamples = 1)."""
    pixels = np.round(np.where(ALPHA[..., None] == 0, 0, HALF_HIDDEN) * (ALPHA[..., None] / 255))
    pixels[..., 3] = ALPHA
    tags = {256: [16], 257: [24], 258: [8] * 4, 262: [2], 277: [4], 338: [1]}
    path.write_bytes(make_tiff((tags, [pixels.astype(np.uint8).tobytes()])))


def save_turned(path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    # For each orientation there is a turn that it undoes: EXIF 2.32, tag 0x112
    store = {
        2: np.fliplr,
        3: lambda a: a[::-1, ::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
    }[orientation]
    save(path, np.ascontiguousarray(store(SMOOTH)), exif=exif, quality=95, subsampling=0)


FILES = {  # how to write it, and what it shows
    "plain.png": (lambda path: save(path, RGB), RGB),
    "plain.jpg": (lambda path: save(path, SMOOTH, quality=95, subsampling=0), SMOOTH),
    "grey.jpg": (lambda path: save(path, SMOOTH[..., 0], quality=95), SMOOTH[..., :1]),
    "cmyk.jpg": (
        lambda path: Image.fromarray(SMOOTH).convert("CMYK").save(path, quality=95),
        SMOOTH,
    ),
    "p3.png": (
        lambda path: save(path, RGB, icc_profile=rgb_profile(DISPLAY_P3)),
        srgb_of(RGB, DISPLAY_P3),
    ),
    "adobe.jpg": (
        lambda path: save(path, COLOUR, icc_profile=rgb_profile(ADOBE_RGB, 2.2), quality=95),
        srgb_of(COLOUR, ADOBE_RGB, 2.2),
    ),
    "prophoto.tif": (
        lambda path: save(path, RGB, icc_profile=rgb_profile(PROPHOTO, 1.8)),
        srgb_of(RGB, PROPHOTO, 1.8),
    ),
    "grey_profile.png": (
        lambda path: save(path, GREY[..., 0], icc_profile=grey_profile(1.0)),
        srgb_of(GREY, gamma=1.0),
    ),
    "grey_alpha_profile.png": (
        lambda path: save(path, np.dstack([COLOUR[..., 1], ALPHA]), icc_profile=grey_profile(1.0)),
        srgb_of(COLOUR[..., 1:2].repeat(3, -1), gamma=1.0),
    ),
    "alpha_profile.png": (
        lambda path: save(path, HALF_HIDDEN, icc_profile=rgb_profile(ADOBE_RGB, 2.2)),
        srgb_of(COLOUR, ADOBE_RGB, 2.2),
    ),
    "damaged_profile.png": (lambda path: save(path, RGB, icc_profile=b"junk"), RGB),
    "other_profile.png": (lambda path: save(path, RGB, icc_profile=grey_profile(1.0)), RGB),
    "alpha.png": (lambda path: save(path, HALF_HIDDEN), COLOUR),
    "alpha.tif": (lambda path: save(path, HALF_HIDDEN), COLOUR),
    "associated_alpha.tif": (save_associated, COLOUR),
    "16_bits.png": (lambda path: save_16_bits(path, RGB), RGB),
    "grey_16_bits.png": (lambda path: save(path, GREY[..., 0].astype(np.uint16) * 257), GREY),
    "transposed.jpg": (lambda path: save_turned(path, 5), SMOOTH),
    "mirrored.jpg": (lambda path: save_turned(path, 2), SMOOTH),
    "turned.jpg": (lambda path: save_turned(path, 6), SMOOTH),
    "upside_down.jpg": (lambda path: save_turned(path, 3), SMOOTH),
}


def read_in_training(folder: Path, path: Path) -> list[np.ndarray]:
    packed = write_folder(folder / "packed", [path.read_bytes()])
    return [open_source(str(source)).read(0) for source in (path.parent, packed)]


def read_in_evaluation(path: Path) -> np.ndarray:
    images = ImageSet(gt="", lr=str(path.parent))
    return make_read_fn(images)(find_entries(images)[0]).lr


def read_in_upscaling(path: Path) -> np.ndarray:
    """Return what a model gets to see of a photo in `upsr upscale`."""
    seen = []

    def look(params, lr, noise):
        seen.append(lr[0])
        return Restoration(*4 * [np.zeros_like(noise)])

    photo = read_photo(path)
    pixels = to_8_bits(photo.pixels)
    if photo.kept.icc:  # through which a viewer looks at it
        image = Image.fromarray(pixels[..., :3])
        image.info["icc_profile"] = photo.kept.icc
        pixels = np.dstack([np.asarray(to_srgb(image)), pixels[..., 3:]])
    Upscaler(look, {}, tile=64)(pixels)
    (tile,) = seen
    return np.round((tile[: pixels.shape[0], : pixels.shape[1]] + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("name", FILES)
def test_it_is_the_same_picture_everywhere(tmp_path, name):
    write, expected = FILES[name]
    path = tmp_path / "photos" / name
    path.parent.mkdir()
    write(path)
    upscaled = read_in_upscaling(path)
    assert upscaled.shape == (24, 16, 3)
    # JPEG loses some, 8-bit tables of a profile a little
    assert np.abs(upscaled.astype(float) - expected).max() <= (6 if path.suffix == ".jpg" else 2)
    for other in (*read_in_training(tmp_path, path), read_in_evaluation(path)):
        # Of 16 bits, Pillow takes the upper ones, which is not rounded
        assert np.abs(other.astype(int) - upscaled).max() <= (1 if "16_bits" in name else 0)
