import shutil
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict
from photos import enlarge, read, save
from test_records import write_folder

from configs.degradations import real_esrgan
from upsr_jax.data.pipeline import (
    check_images,
    example_names,
    mix,
    open_sources,
    shuffle,
    to_signed,
    train_batches,
)

FILES = 10
BATCH = 4


def smooth_image(seed, height, width):
    noise = np.random.default_rng(seed).random((height // 4, width // 4, 3), np.float32)
    return (255 * cv2.resize(noise, (width, height))).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(FILES):
        save(folder / f"{i}.png", smooth_image(i, 40 + 4 * i, 72))
    return str(folder)


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """Pack four photographs of the folder."""
    files = [Path(folder, f"{i}.png").read_bytes() for i in range(4)]
    return str(write_folder(tmp_path_factory.mktemp("records") / "packed", files[:3], files[3:]))


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory):
    """Write pairs whose low-resolution image is every fourth pixel of the ground truth."""
    root = tmp_path_factory.mktemp("pairs")
    for i in range(FILES):
        lr = smooth_image(i, 64, 80)
        save(root / "hr" / f"{i}.png", enlarge(lr))
        save(root / "lr" / f"{i}.png", lr)
    return str(root / "hr"), str(root / "lr")


def data_config(folder, **changes):
    config = dict(
        folders=(folder,),
        weights=(),
        pairs=(),
        batch_size=BATCH,
        crop_size=32,
        scale=(1.0, 1.0),
        rotation=0.0,
        use_sharp=False,
        pool=0,
        num_threads=0,
        num_workers=0,
        max_bad_fraction=0.0,
        degrade_on="host",
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


def test_workers_change_nothing(folder, packed, pair_folders):
    mixture = data_config(folder, folders=(folder, packed), weights=(1.0, 2.0))
    pairs = data_config(folder, folders=(), pairs=pair_folders)
    for data, num_workers in ((mixture, 2), (pairs, 1)):
        expected = batches(data, 4, start_step=2)
        data.num_workers = num_workers
        assert_same(batches(data, 4, start_step=2), expected)


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
    save(tmp_path / "only.png", smooth_image(0, 64, 64))
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
    for batch in batches(data, 3):
        for hr, name in zip(batch["hr"], example_names(data, batch["index"]), strict=True):
            photo = read(name).reshape(-1, 3)
            pixels = np.unique(((hr + 1) / 2 * 255).round().astype(np.uint8).reshape(-1, 3), axis=0)
            assert {tuple(pixel) for pixel in pixels} <= {tuple(pixel) for pixel in photo}


def test_index_counts_through_a_mixture(folder, packed):
    data = data_config(folder, folders=(packed, folder))
    names = example_names(data, range(4 + FILES))
    assert names[2:6] == [
        f"{packed}/0.array_record[2]",
        f"{packed}/1.array_record[0]",
        f"{folder}/0.png",
        f"{folder}/1.png",
    ]
    index = np.concatenate([batch["index"] for batch in batches(data, 7)])
    assert sorted(index[: 4 + FILES]) == list(range(4 + FILES))  # an epoch of both together


@pytest.fixture
def folder_with_a_bad_file(folder, tmp_path):
    for i in range(FILES):
        shutil.copy(f"{folder}/{i}.png", tmp_path)
    data = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(data[: len(data) // 2])
    return str(tmp_path)


def test_a_bad_file_is_replaced_and_logged_once(folder, folder_with_a_bad_file, caplog):
    def taken(**changes):
        return batches(data_config(folder_with_a_bad_file, max_bad_fraction=0.1, **changes), 8)

    index = np.concatenate([batch["index"] for batch in taken()])
    good = np.concatenate([batch["index"] for batch in batches(data_config(folder), 8)])
    np.testing.assert_array_equal(index, np.where(good == 5, 6, good))
    assert (good == 5).sum() > 1
    assert [record.getMessage().count("5.png") for record in caplog.records] == [1]
    assert_same(taken(num_threads=2), taken())


@pytest.mark.parametrize("changes", [{}, dict(num_threads=2), dict(num_workers=2)])
def test_too_many_bad_files_are_an_error(folder_with_a_bad_file, changes):
    with pytest.raises(ValueError, match=r"1 of 10 images are bad.*5\.png"):
        batches(data_config(folder_with_a_bad_file, **changes), 5)


def test_bad_files_are_counted_over_all_workers(folder_with_a_bad_file):
    """Each image is bad for itself, not in a row, and each worker meets but some of them."""
    for name in ("1.png", "8.png"):
        Path(folder_with_a_bad_file, name).write_text("<html>404</html>")
    data = data_config(folder_with_a_bad_file, max_bad_fraction=0.2, num_workers=2)
    with pytest.raises(ValueError, match=r"3 of 10 images are bad"):
        batches(data, 5)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_bad_files_are_found_before_the_first_step(folder, tmp_path, caplog, num_threads):
    """Half a JPEG has a good header; whole ones may have something after their end."""
    for i in range(FILES):
        save(tmp_path / f"{i}.jpg", read(f"{folder}/{i}.png"))
    halves = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(halves[: len(halves) // 2])
    (tmp_path / "4.jpg").write_bytes((tmp_path / "4.jpg").read_bytes() + bytes(1000))
    (tmp_path / "5.jpg").write_bytes(b"")
    data = data_config(str(tmp_path), num_threads=num_threads)
    opened = open_sources(data)
    with pytest.raises(ValueError, match=r"2 of 10 images are bad.*3\.jpg.*5\.jpg.* Put whole"):
        check_images(opened, data, 0, 1)
    check_images(opened, data, 0, 2)  # the even ones
    data.max_bad_fraction = 0.2
    caplog.clear()
    check_images(opened, data, 0, 1)
    assert caplog.text.count("Bad image: ") == 2


def test_pairs_are_checked_too_and_packed_images_were(pair_folders, packed, tmp_path):
    hr, lr = (shutil.copytree(folder, tmp_path / Path(folder).name) for folder in pair_folders)
    (lr / "2.png").write_bytes((lr / "2.png").read_bytes()[:-2000])
    data = data_config(None, folders=(), pairs=(str(hr), str(lr)))
    with pytest.raises(ValueError, match=r"1 of 10 images are bad.*lr/2\.png"):
        check_images(open_sources(data), data, 0, 1)
    (opened,) = open_sources(data_config(packed))
    check_images([opened._replace(read=None)], data_config(packed), 0, 1)  # nothing is read


@pytest.mark.parametrize("changes", [{}, dict(pool=8), dict(num_workers=1)])
def test_a_device_gets_the_same_crops_in_bytes_and_the_places_they_are_drawn_by(folder, changes):
    data = data_config(folder, **changes)
    expected = batches(data, 4)
    data.degrade_on = "device"
    actual = batches(data, 4)
    for batch, other, numbers in zip(actual, expected, mix(BATCH, data.pool, 3, 0), strict=False):
        assert batch["hr"].dtype == np.uint8
        np.testing.assert_array_equal(to_signed(batch["hr"]), other["hr"])
        np.testing.assert_array_equal(batch["index"], other["index"])
        assert batch["place"].dtype == np.int32
        places = np.stack(np.divmod(numbers, BATCH), axis=1)
        np.testing.assert_array_equal(batch["place"], places)
        assert "lr" not in batch


def test_opencv_keeps_the_threads_of_its_program(folder):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    batches(data_config(folder, num_threads=1), 1)
    after = cv2.getNumThreads()
    cv2.setNumThreads(before)
    assert after == 3


# The order of images


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.7, 0.3), (1, 1000)])
def test_a_mixture_has_its_proportions_at_all_times(weights):
    order = shuffle((700, 9000), weights, seed=0)
    index = np.array([order[i] for i in range(5000)])
    count = np.cumsum(index < 700)
    expected = np.arange(1, 5001) * weights[0] / sum(weights)
    assert np.abs(count - expected).max() <= 1 + 0.01 * expected[-1]


def test_the_sources_of_a_mixture_have_epochs_of_their_own():
    order = shuffle((500, 700), (2, 1), seed=0)
    index = np.array([order[i] for i in range(3000)])
    for source, numbers in (
        (index[index < 500], range(500)),
        (index[index >= 500], range(500, 1200)),
    ):
        epochs = [source[i : i + len(numbers)] for i in range(0, 1000, len(numbers))]
        assert sorted(epochs[0]) == list(numbers)
        assert (epochs[0][: len(epochs[1])] != epochs[1]).any()
    assert order[2345] == index[2345]  # whatever came before


def test_pairs_are_cropped_alike(pair_folders):
    data = data_config(None, folders=(), pairs=pair_folders)
    corners = set()
    for batch in batches(data, 8):
        np.testing.assert_array_equal(batch["hr"], enlarge(batch["lr"]))
        corners |= {tuple(lr[0, 0]) for lr in batch["lr"]}
    assert len(corners) > FILES


def test_pairs_depend_on_neither_threads_nor_processes(pair_folders):
    data = data_config(None, folders=(), pairs=pair_folders)
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
        (dict(pairs=("hr", "lr")), "one of folders .* and pairs"),
        (dict(folders=()), "one of folders .* and pairs"),
        (dict(weights=(1.0, 2.0)), r"weights is \(1\.0, 2\.0\): .* each of the 1 folders"),
        (dict(weights=(0.0,)), r"weights is \(0\.0,\): give a weight above 0"),
    ],
)
def test_bad_settings_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        train_batches(data_config(folder, **changes), real_esrgan(), 0, 0, 0, 2)


def test_a_pool_mixes_batches_and_goes_on_anywhere(folder, packed):
    """Every pair comes once more than it would: as the pool fills, and out of it."""
    steps = [list(batch) for batch in islice(mix(4, 20, 0, 0), 200)]
    assert list(chain(*steps[:5])) == list(range(20))
    drawn = list(chain(*steps[5:]))
    assert len(set(drawn)) == len(drawn) and max(drawn) < 4 * 199
    # A pair waits for 20 / 4 batches on average, but for those that wait still.
    waits = [step - number // 4 for step, batch in enumerate(steps[5:], 5) for number in batch]
    assert np.mean(waits[100:]) == pytest.approx(5, rel=0.15)
    assert [list(batch) for batch in islice(mix(4, 20, 0, 50), 150)] == steps[50:]
    assert [list(batch) for batch in islice(mix(4, 20, 1, 50), 150)] != steps[50:]
    data = data_config(folder, pool=8)
    plain, pooled = batches(data_config(folder), 6), batches(data, 6)
    index = np.concatenate([batch["index"] for batch in plain])
    for step, numbers in enumerate(islice(mix(BATCH, 8, 3, 0), 6)):
        np.testing.assert_array_equal(pooled[step]["index"], index[list(numbers)])
        hr = np.concatenate([batch["hr"] for batch in plain])
        np.testing.assert_array_equal(pooled[step]["hr"], hr[list(numbers)])
    assert not np.array_equal(pooled[0]["lr"], plain[0]["lr"])  # it is drawn for the whole batch
    assert_same(batches(data, 2, start_step=4), pooled[4:])
    halves = [batches(data, 2, start_step=4, process_index=i, process_count=2) for i in (0, 1)]
    for whole, *parts in zip(pooled[4:], *halves, strict=True):
        assert_same([{k: np.concatenate([p[k] for p in parts]) for k in whole}], [whole])
