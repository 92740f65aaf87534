"""Images to evaluate on are found by name, read, or made from ground truths, the same each time."""

import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from photos import draw_photo, save, write_photos

from configs import tiny
from upsr_jax.data import test_sets
from upsr_jax.data.test_sets import (
    Entry,
    ImageSet,
    centre_crop,
    find_entries,
    hash_files,
    image_seed,
    make_read_fn,
)
from upsr_jax.train.config import eval_settings


def config_of(**settings) -> ConfigDict:
    config = tiny.get_config()
    config.eval.update(**{key: str(value) for key, value in settings.items()})
    return config


def images_of(config: ConfigDict) -> ImageSet:
    return eval_settings(config).images


def test_centre_crop():
    image = np.arange(11 * 16 * 3, dtype=np.uint8).reshape(11, 16, 3)
    np.testing.assert_array_equal(centre_crop(image, 4), image[3:7, 6:10])
    np.testing.assert_array_equal(centre_crop(image, 256), image[1:9, 4:12])


def test_degraded_images_depend_on_seed_and_name_alone(tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    config = config_of(gt=photos, lr="")
    config.eval.crop_size = 64
    entries = find_entries(images_of(config))
    examples = [make_read_fn(images_of(config))(entry) for entry in entries]
    for i, example in enumerate(examples):
        assert example.name == str(i)
        np.testing.assert_array_equal(example.hr, draw_photo(i, 80, 100)[8:72, 18:82])
        assert (example.lr.shape, example.lr.dtype) == ((16, 16, 3), np.uint8)
    (photos / "0.png").unlink()
    (entry, _) = find_entries(images_of(config))
    np.testing.assert_array_equal(make_read_fn(images_of(config))(entry).lr, examples[1].lr)
    config.eval.seed += 1
    assert not np.array_equal(make_read_fn(images_of(config))(entry).lr, examples[1].lr)


def test_images_are_listed_by_name(tmp_path):
    for folder in ("gt", "lq"):
        for name in ("b/x", "b", "a"):
            save(tmp_path / folder / f"{name}.png")
    config = config_of(gt=tmp_path / "gt", lr=tmp_path / "lq")
    assert [entry.name for entry in find_entries(images_of(config))] == ["a", "b", "b/x"]
    config.eval.gt = ""
    entries = find_entries(images_of(config))
    assert [(entry.name, entry.gt) for entry in entries] == [
        ("a", None),
        ("b", None),
        ("b/x", None),
    ]


def test_a_broken_image_has_a_reason(tmp_path):
    for folder, sides in (("gt", (64, 60)), ("lq", (16, 16))):
        save(tmp_path / folder / "a.png", draw_photo(0, *sides))
    config = config_of(gt=tmp_path / "gt", lr=tmp_path / "lq")
    (entry,) = find_entries(images_of(config))
    with pytest.raises(ValueError, match=r"60x64 pixels.* would be 64x64"):
        make_read_fn(images_of(config))(entry)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (15, 64)])
def test_a_ground_truth_too_small_to_be_degraded_is_broken(tmp_path, height, width):
    save(tmp_path / "a.png", draw_photo(0, height, width))
    config = config_of(gt=tmp_path, lr="")
    (entry,) = find_entries(images_of(config))
    with pytest.raises(ValueError, match=r"a\.png' has .* but 16 are the least"):
        make_read_fn(images_of(config))(entry)


def test_an_image_too_large_for_memory_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(test_sets, "MAX_LR_PIXELS", 20 * 30)
    for name, height in (("a", 20), ("b", 21)):
        save(tmp_path / f"{name}.png", draw_photo(0, height, 30))
    config = config_of(gt="", lr=tmp_path)
    whole, broken = find_entries(images_of(config))
    assert make_read_fn(images_of(config))(whole).lr.shape == (20, 30, 3)
    with pytest.raises(ValueError, match=r"b\.png' makes 30x21 low-resolution pixels, more"):
        make_read_fn(images_of(config))(broken)


def test_a_folder_without_images_is_named_with_where_to_get_them(tmp_path):
    config = config_of(gt="", lr=tmp_path, source="ask a friend")
    with pytest.raises(FileNotFoundError, match=f"are not in '{tmp_path}': ask a friend"):
        find_entries(images_of(config))


def test_a_name_that_is_no_text_is_refused(tmp_path):
    save(tmp_path / "a.png").rename(tmp_path / os.fsdecode(b"a\xff.png"))
    with pytest.raises(ValueError, match=r"image 'a\\udcff' is not UTF-8: rename it"):
        find_entries(ImageSet(gt="", lr=str(tmp_path)))


def test_the_hash_is_of_all_bytes_of_both_files(tmp_path):
    hashes = set()
    for lr, gt in ((b"a", b"b"), (b"ab", b""), (b"b", b"a"), (b"a", b"c")):
        (tmp_path / "lr").write_bytes(lr)
        (tmp_path / "gt").write_bytes(gt)
        hashes.add(hash_files(Entry("a", str(tmp_path / "lr"), str(tmp_path / "gt"))))
    assert len(hashes) == 4


def test_seeds_of_images_differ():
    seeds = {image_seed(seed, name) for seed in range(3) for name in ("a", "b", "a/b", "1/a")}
    assert len(seeds) == 12 and all(0 <= seed < 2**64 for seed in seeds)


def test_sharpened_ground_truth_is_refused(tmp_path):
    config = config_of(gt=tmp_path, lr="")
    config.data.use_sharp = True
    with pytest.raises(ValueError, match=r"set config\.data\.use_sharp to False"):
        images_of(config)


def test_no_folder_at_all_is_refused():
    with pytest.raises(ValueError, match=r"eval\.gt and config\.eval\.lr are both empty"):
        find_entries(ImageSet(gt="", lr=""))
