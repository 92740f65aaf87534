import cv2
import numpy as np
import pytest

from configs.degradations import real_esrgan
from upsr_jax.data.degradation import sharpen, to_bytes, to_unit
from upsr_jax.data.examples import crop_pair, degrade_crop, random_crop_and_flip
from upsr_jax.data.sources import Pair


def coordinates(height, width):
    """Return an image of which every pixel holds its row, its column and 7."""
    row, column = np.mgrid[:height, :width]
    return np.stack([row, column, np.full_like(row, 7)], axis=-1).astype(np.uint8)


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


def test_pairs_smaller_than_the_crop_are_refused():
    pair = Pair(coordinates(40, 64), coordinates(10, 16))
    with pytest.raises(ValueError, match=r"64x40 .* crop_size = 48"):
        crop_pair(np.random.default_rng(0), pair, 48)


def test_use_sharp_sharpens_the_ground_truth():
    config = real_esrgan().to_dict()
    noise = np.random.default_rng(0).random((16, 16, 3), np.float32)
    photo = np.uint8(255 * cv2.resize(noise, (64, 64)))
    plain, sharp = (
        degrade_crop(np.random.default_rng(0), photo, 64, **config | dict(use_sharp=use_sharp))
        for use_sharp in (False, True)
    )
    np.testing.assert_array_equal(
        plain.hr, random_crop_and_flip(np.random.default_rng(0), photo, 64)
    )
    np.testing.assert_array_equal(sharp.hr, to_bytes(sharpen(to_unit(plain.hr))))
    assert sharp.hr.std() > 1.1 * plain.hr.std()
    assert (sharp.lr != plain.lr).any()
