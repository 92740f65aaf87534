import cv2
import numpy as np
import pytest
from photos import save

from upsr_jax.data.degradation.host import sharpen, to_bytes, to_unit
from upsr_jax.data.examples import (
    Place,
    crop_photo,
    make_example,
    random_crop_and_flip,
    random_rotated_crop,
)
from upsr_jax.data.sources import Pair, open_pairs


def coordinates(height, width):
    """Return an image of which every pixel holds its row, its column and 7."""
    row, column = np.mgrid[:height, :width]
    return np.stack([row, column, np.full_like(row, 7)], axis=-1).astype(np.uint8)


def cropped(rng, photo, size, scale=(1.0, 1.0), rotation=0.0, use_sharp=False):
    """Crop as a training example; by default neither shrunk, turned nor sharpened."""
    return crop_photo(rng, photo, size, scale, rotation, use_sharp)


def test_crops_are_flipped_all_ways_and_lie_anywhere():
    rng = np.random.default_rng(0)
    orientations, corners = [], []
    for _ in range(2000):
        crop = random_crop_and_flip(rng, coordinates(20, 24), 16).astype(int)
        down, right = crop[1, 0] - crop[0, 0], crop[0, 1] - crop[0, 0]
        orientations.append((*down, *right))
        corners.append(tuple(crop.min(axis=(0, 1))))
        assert crop.shape == (16, 16, 3)
        np.testing.assert_array_equal(np.ptp(crop, axis=(0, 1)), [15, 15, 0])
    for values, kinds in ((orientations, 8), (corners, 5 * 9)):
        _, counts = np.unique(values, axis=0, return_counts=True)
        expected = 2000 / kinds
        assert len(counts) == kinds
        assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


def test_small_photographs_are_extended_by_reflection():
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop = random_crop_and_flip(rng, coordinates(20, 12), 16)
        assert crop.shape == (16, 16, 3)
        if crop[0, 0, 0] != crop[0, 1, 0]:
            crop = crop.swapaxes(0, 1)  # rows run down again
        columns = crop[0, :, 1].astype(int)
        step = columns[1] - columns[0]
        assert abs(step) == 1
        edge = 11 if step == 1 else 0
        expected = np.concatenate([columns[:12], edge - step * np.arange(1, 5)])
        assert columns[11] == edge
        np.testing.assert_array_equal(columns, expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (15, 2)])
def test_tiny_photographs_fill_a_crop(shape):
    crop = random_crop_and_flip(np.random.default_rng(0), coordinates(*shape), 64)
    assert crop.shape == (64, 64, 3)
    assert (crop[..., 2] == 7).all()


def test_unfit_pairs_are_named_and_passed_over(tmp_path):
    """One is smaller than the crop, of another the sides are not 4:1."""
    sizes = [(64, 64, 16, 16), (40, 64, 10, 16), (64, 64, 16, 15), (48, 52, 12, 13)]
    for i, sides in enumerate(sizes):
        for folder, size in (("gt", sides[:2]), ("lq", sides[2:])):
            save(tmp_path / folder / f"{i}.png", coordinates(*size))
    source = open_pairs(str(tmp_path / "gt"), str(tmp_path / "lq"))

    def make(index, max_bad_fraction=0.5):
        place = Place(0, 0, index)
        crop = 48, (1.0, 1.0), 0.0, False
        return make_example(source, max_bad_fraction, 0, *crop, {}, False, place)

    assert (make(0).number, make(0).rejected) == (0, [])
    example = make(1)
    assert isinstance(example.crop, Pair)
    assert (example.number, example.crop.hr.shape) == (3, (48, 48, 3))
    small, skewed = example.rejected
    assert small == f"'{tmp_path}/gt/1.png' has 64x40 pixels, under crop_size = 48."
    assert f"'{tmp_path}/gt/2.png' has 64x64 pixels, but 4 times" in skewed
    with pytest.raises(ValueError, match=r"2 of 4 images are bad.*1\.png.*2\.png"):
        make(1, max_bad_fraction=0.25)


def test_use_sharp_sharpens_the_ground_truth():
    noise = np.random.default_rng(0).random((16, 16, 3), np.float32)
    photo = (255 * cv2.resize(noise, (64, 64))).astype(np.uint8)
    plain, sharp = (
        cropped(np.random.default_rng(0), photo, 64, use_sharp=use_sharp)
        for use_sharp in (False, True)
    )
    np.testing.assert_array_equal(plain, random_crop_and_flip(np.random.default_rng(0), photo, 64))
    np.testing.assert_array_equal(sharp, to_bytes(sharpen(to_unit(plain))))
    assert sharp.std() > 1.1 * plain.std()


def test_scale_shrinks_the_photograph_before_it_is_cropped():
    photo = np.random.default_rng(0).integers(0, 256, (128, 96, 3), np.uint8)
    hr = cropped(np.random.default_rng(1), photo, 32, scale=(0.5, 0.5))
    rng = np.random.default_rng(1)
    rng.uniform()
    whole = random_crop_and_flip(rng, photo, 64).astype(float)
    means = whole.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(hr - means).max() <= 0.5


def test_scales_are_drawn_between_the_bounds():
    ramp = np.tile(np.arange(0, 252, dtype=np.uint8)[:, None, None], (1, 252, 3))
    photo = np.ascontiguousarray(ramp)
    steps = []
    for seed in range(40):
        hr = cropped(np.random.default_rng(seed), photo, 48, scale=(0.5, 0.75))
        slopes = (np.abs(np.diff(hr.astype(float), axis=axis)).mean() for axis in (0, 1))
        steps.append(max(slopes))  # pixels of the photograph in one of the crop
    assert 1 / 0.75 - 0.02 < min(steps) < 1.4 < 1.9 < max(steps) < 1 / 0.5 + 0.02


def test_half_of_the_crops_are_turned_within_the_bound():
    """A ramp tells by how much: its slope stays, and its direction is the turn, up to a flip."""
    rows, columns = np.mgrid[:300, :300]
    photo = np.stack([rows // 2 + 50, columns // 2 + 50, np.full_like(rows, 7)], -1).astype(
        np.uint8
    )
    rng, turns = np.random.default_rng(0), []
    for _ in range(400):
        hr = cropped(rng, photo, 64, rotation=30.0).astype(float)
        assert (hr[..., 2] == 7).all()  # no border of another colour
        down = (hr[42:, :, 0] - hr[:22, :, 0]).mean() / 42
        right = (hr[:, 42:, 0] - hr[:, :22, 0]).mean() / 42
        assert np.hypot(down, right) == pytest.approx(0.5, abs=0.01)
        turns.append((np.rad2deg(np.arctan2(down, right)) + 45) % 90 - 45)
    turns = np.array(turns)
    turned = np.abs(turns) > 0.3
    assert 150 < turned.sum() < 250
    assert np.abs(turns).max() < 30.5
    for side in (turns[turned], -turns[turned]):
        assert (side > 25).sum() > 5
        assert 50 < (side > 0).sum() < 150


def test_a_turned_crop_is_the_photograph_about_its_centre():
    """Turned by 90 degrees nothing is interpolated: all of it is the crop, on its side."""
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    turned = random_rotated_crop(np.random.default_rng(1), photo, 32, 90.0)
    straight = random_rotated_crop(np.random.default_rng(1), photo, 32, 0.0)
    np.testing.assert_array_equal(
        straight, random_crop_and_flip(np.random.default_rng(1), photo, 32)
    )
    np.testing.assert_array_equal(turned, np.rot90(straight, -1))
