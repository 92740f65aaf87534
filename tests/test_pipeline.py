from itertools import islice

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.degradations import real_esrgan
from upsr_jax.data.degradation import to_unit
from upsr_jax.data.pipeline import (
    crop_pair,
    degrade_crop,
    list_files,
    random_crop_and_flip,
    train_batches,
)
from upsr_jax.data.sources import Pair

FILES = 10
BATCH = 4


def smooth_image(seed, height, width):
    noise = np.random.default_rng(seed).random((height // 4, width // 4, 3), np.float32)
    return np.uint8(255 * cv2.resize(noise, (width, height)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(FILES):
        Image.fromarray(smooth_image(i, 40 + 4 * i, 72)).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory):
    """Write pairs whose low-resolution image is every fourth pixel of the ground truth."""
    root = tmp_path_factory.mktemp("pairs")
    (root / "hr").mkdir()
    (root / "lr").mkdir()
    for i in range(FILES):
        hr = smooth_image(i, 64, 80)
        Image.fromarray(hr.repeat(4, 0).repeat(4, 1)).save(root / "hr" / f"{i}.png")
        Image.fromarray(hr).save(root / "lr" / f"{i}.png")
    return str(root / "hr"), str(root / "lr")


def data_config(folder, **changes):
    config = dict(
        folders=(folder,),
        pairs=None,
        batch_size=BATCH,
        crop_size=32,
        num_threads=0,
        max_bad_fraction=0.0,
    )
    return ConfigDict(config | changes)


def batches(data, count, seed=3, start_step=0, process_index=0, process_count=1):
    iterator = train_batches(data, real_esrgan(), seed, start_step, process_index, process_count)
    taken = list(islice(iterator, count))
    iterator.close()
    return taken


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_their_shapes_types_and_ranges(folder):
    for batch in batches(data_config(folder), 3):
        assert batch["hr"].shape == (BATCH, 32, 32, 3)
        assert batch["lr"].shape == (BATCH, 8, 8, 3)
        assert batch["index"].shape == (BATCH,)
        assert batch["index"].dtype == np.int64
        for key in ("hr", "lr"):
            assert batch[key].dtype == np.float32
            bytes_ = (batch[key] + 1) / 2 * 255  # all 256 values, from -1 to 1
            np.testing.assert_allclose(bytes_, bytes_.round(), atol=1e-4)
            assert batch[key].min() >= -1
            assert batch[key].max() <= 1
            assert batch[key].std() > 0.1


def test_threads_change_nothing(folder):
    expected = batches(data_config(folder), 6)
    for num_threads in (1, 3):
        assert_same(batches(data_config(folder, num_threads=num_threads), 6), expected)


def test_restarts_change_nothing(folder):
    expected = batches(data_config(folder), 6)
    for step in (1, 4):
        actual = batches(data_config(folder, num_threads=2), 6 - step, start_step=step)
        assert_same(actual, expected[step:])


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_change_nothing(folder, process_count):
    parts = [
        batches(data_config(folder), 4, start_step=2, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, batches(data_config(folder), 4, start_step=2))


def test_another_seed_changes_the_order(folder):
    one, other = (batches(data_config(folder), 3, seed=seed) for seed in (3, 4))
    assert any((a["index"] != b["index"]).any() for a, b in zip(one, other, strict=True))


def test_seed_step_and_row_change_the_draws(tmp_path):
    Image.fromarray(smooth_image(0, 64, 64)).save(tmp_path / "only.png")
    data = data_config(str(tmp_path))
    examples = [x for seed in (3, 4) for batch in batches(data, 3, seed=seed) for x in batch["lr"]]
    assert len({example.tobytes() for example in examples}) == 2 * 3 * BATCH


def test_every_epoch_has_all_files_in_its_own_order(folder):
    taken = batches(data_config(folder), 3 * FILES // BATCH + 1)
    index = np.concatenate([batch["index"] for batch in taken])[: 3 * FILES]
    epochs = index.reshape(3, FILES)
    for epoch in epochs:
        assert sorted(epoch) == list(range(FILES))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_index_names_the_file_behind_an_example(folder):
    data = data_config(folder)
    files = list_files(data)
    for batch in batches(data, 3):
        for hr, index in zip(batch["hr"], batch["index"], strict=True):
            # The row of the crop's first pixel values is a row or column of the photograph
            photo = np.asarray(Image.open(files[index])).reshape(-1, 3)
            pixels = np.unique(((hr + 1) / 2 * 255).round().astype(np.uint8).reshape(-1, 3), axis=0)
            assert {tuple(pixel) for pixel in pixels} <= {tuple(pixel) for pixel in photo}


def test_a_bad_file_is_replaced(folder, tmp_path):
    for i in range(FILES):
        Image.open(f"{folder}/{i}.png").save(tmp_path / f"{i}.png")
    data = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(data[: len(data) // 2])

    def taken(**changes):
        return batches(data_config(str(tmp_path), max_bad_fraction=0.1, **changes), 5)

    index = np.concatenate([batch["index"] for batch in taken()])
    good = np.concatenate([batch["index"] for batch in batches(data_config(folder), 5)])
    np.testing.assert_array_equal(index, np.where(good == 5, 6, good))
    assert (good == 5).any()
    assert_same(taken(num_threads=2), taken())
    with pytest.raises(ValueError, match=r"1 of 10 images are bad.*5\.png"):
        batches(data_config(str(tmp_path), num_threads=2), 5)


def test_pairs_are_cropped_alike(pair_folders):
    data = data_config(None, folders=None, pairs=pair_folders)
    corners = set()
    for batch in batches(data, 8):
        np.testing.assert_array_equal(batch["hr"], batch["lr"].repeat(4, axis=1).repeat(4, axis=2))
        corners |= {tuple(lr[0, 0]) for lr in batch["lr"]}
    assert len(corners) > FILES


def test_pairs_depend_on_neither_threads_nor_processes(pair_folders):
    data = data_config(None, folders=None, pairs=pair_folders)
    expected = batches(data, 3)
    data.num_threads = 2
    for i in range(2):
        half = slice(i * BATCH // 2, (i + 1) * BATCH // 2)
        actual = batches(data, 3, process_index=i, process_count=2)
        assert_same(actual, [{key: x[half] for key, x in batch.items()} for batch in expected])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=5), "batch of 5 .* over 2 processes"),
        (dict(crop_size=30), "crop_size is 30"),
        (dict(crop_size=12), "crop_size is 12"),
        (dict(pairs=("hr", "lr")), "one of folders .* and pairs"),
        (dict(folders=None), "one of folders .* and pairs"),
    ],
)
def test_bad_settings_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train_batches(data_config(folder, **changes), real_esrgan(), 0, 0, 0, 2)


# Crops


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
    photo = smooth_image(0, 64, 64)
    plain, sharp = (
        degrade_crop(np.random.default_rng(0), photo, 64, **config | dict(use_sharp=use_sharp))
        for use_sharp in (False, True)
    )
    np.testing.assert_array_equal(
        plain[0], to_unit(random_crop_and_flip(np.random.default_rng(0), photo, 64))
    )
    assert sharp[0].std() > 1.1 * plain[0].std()
    assert (sharp[1] != plain[1]).any()
