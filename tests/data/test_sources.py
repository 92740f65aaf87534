import sys
from pathlib import Path

import numpy as np
import pytest
from photos import photo, save
from PIL import Image
from test_records import write_folder

from upsr_jax.data.sources import (
    Pair,
    PairFiles,
    by_stem,
    concatenate,
    list_images,
    list_pairs,
    open_pairs,
    open_source,
    read_or_next,
    read_pair,
)
from upsr_jax.files.photos import ImageError, read_rgb

RGB = photo(24, 16)


def test_images_are_listed_recursively_and_sorted(tmp_path):
    names = ["b.PNG", "a.jpg", "deep/er/c.webp", "deep/d.tif", "e.jpeg", "f.bmp"]
    for name in names:
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.jpg").write_text("a resource fork")
    assert list_images(str(tmp_path)) == sorted(str(tmp_path / name) for name in names)
    deep = list_images(str(tmp_path / "deep"))
    assert list_images(str(tmp_path / "deep"), str(tmp_path))[:2] == deep


def test_a_folder_without_images_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no images. Put photographs there .*ImageNet"):
        list_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_images(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_colours_are_read_in_order(tmp_path, suffix):
    np.testing.assert_array_equal(read_rgb(save(tmp_path / f"a.{suffix}", RGB)), RGB)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_are_read_as_pillow_reads_them(tmp_path, suffix):
    file = save(tmp_path / f"a.{suffix}", np.repeat(np.repeat(RGB, 8, 0), 8, 1), quality=95)
    expected = np.asarray(Image.open(file)).astype(int)
    assert np.abs(read_rgb(file) - expected).mean() < 1


def test_grey_alpha_and_16_bits_become_8_bit_rgb(tmp_path):
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    np.testing.assert_array_equal(read_rgb(save(tmp_path / "grey.png", grey)), expected)
    deep = save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_rgb(deep), expected)
    alpha = save(tmp_path / "alpha.png", np.dstack([RGB, np.maximum(grey, 1)]))
    np.testing.assert_array_equal(read_rgb(alpha), RGB)


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned, the first row is the right-hand side
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, np.newaxis], 16, axis=1)
    image = read_rgb(save(tmp_path / "a.jpg", ramp, exif=exif, quality=95))
    assert image.shape == (16, 32, 3)
    assert image[:, 0].mean() > 240
    assert image[:, -1].mean() < 15


def damaged(path: Path) -> str:
    """Write a file that begins like an image."""
    data = save(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return str(path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    damaged(tmp_path / "half.png")
    for name in ("empty.png", "page.jpg", "half.png", "missing.png"):
        with pytest.raises(ImageError, match=name):
            read_rgb(str(tmp_path / name))


def test_pairs_are_matched_by_name(tmp_path):
    for name in ("b", "a", "sub/c"):
        save(tmp_path / "hr" / f"{name}.png", RGB)
        save(tmp_path / "lr" / f"{name}.jpg", RGB[:6, :4])
    hr, lr = str(tmp_path / "hr"), str(tmp_path / "lr")
    pairs = list_pairs(hr, lr)
    assert [Path(pair.hr).relative_to(hr).as_posix() for pair in pairs] == [
        "a.png",
        "b.png",
        "sub/c.png",
    ]
    assert [Path(pair.lr).relative_to(lr).as_posix() for pair in pairs] == [
        "a.jpg",
        "b.jpg",
        "sub/c.jpg",
    ]
    truths, inputs = zip(*map(read_pair, pairs), strict=True)
    np.testing.assert_array_equal(truths[1], RGB)
    assert inputs[0].shape == (6, 4, 3)


def test_images_without_a_partner_are_listed(tmp_path):
    for name in ("hr/a.png", "hr/b.png", "hr/c.png", "lr/b.png", "lr/d.png"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match=r"only one of them has a, c, d\."):
        list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))
    save(tmp_path / "hr/b.jpg")
    with pytest.raises(ValueError, match=r"only one of them has a, b, b\.jpg, b\.png, c, d\."):
        list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))


def test_pictures_that_only_their_suffix_tells_apart_keep_it(tmp_path):
    for name in ("b.jpg", "b.png", "c.png"):
        save(tmp_path / "hr" / name)
        save(tmp_path / "lr" / name)
    assert list(by_stem(str(tmp_path / "hr"))) == ["b.jpg", "b.png", "c"]
    for pair in list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr")):
        assert Path(pair.hr).name == Path(pair.lr).name
    save(tmp_path / "hr" / "b.jpg.png")
    with pytest.raises(ValueError, match=r"b\.jpg\.?p?n?g?' and .* share a name"):
        by_stem(str(tmp_path / "hr"))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        (["0801", "0802"], ["0801x4", "0802x4"]),  # DIV2K
        (["0801", "0802"], ["0801x4m", "0802x4m"]),
        (["fox1", "fox2"], ["fox1x4", "fox2x4"]),
        (["Canon_001_HR", "Canon_002_HR"], ["Canon_001_LR4", "Canon_002_LR4"]),  # RealSR
        (["img_001_SRF_4_HR", "img_002_SRF_4_HR"], ["img_001_SRF_4_LR", "img_002_SRF_4_LR"]),
    ],
)
@pytest.mark.parametrize("lr_folder", ["lr", "hr"])  # two folders, or one for both
def test_pairs_are_matched_as_data_sets_name_them(tmp_path, hr, lr, lr_folder):
    for ours, theirs in zip(hr, lr, strict=True):
        save(tmp_path / "hr" / "sub" / f"{ours}.png")
        save(tmp_path / lr_folder / "sub" / f"{theirs}.jpg")
    pairs = list_pairs(str(tmp_path / "hr"), str(tmp_path / lr_folder))
    assert [(Path(pair.hr).stem, Path(pair.lr).stem) for pair in pairs] == list(
        zip(hr, lr, strict=True)
    )


def test_one_end_of_names_may_be_of_either_folder(tmp_path):
    for name in ("hr/sony_1_x4.png", "lr/sony_1_x1.png"):  # DRealSR
        save(tmp_path / name)
    (pair,) = list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))
    assert (Path(pair.hr).stem, Path(pair.lr).stem) == ("sony_1_x4", "sony_1_x1")


def test_the_ends_of_names_match_all_or_none(tmp_path):
    for name in ("hr/a.png", "hr/b.png", "lr/ax4.png", "lr/bx2.png"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match=r"NAME_HR and NAME_LR4.* only one of them has a, ax4, b"):
        list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))


@pytest.mark.parametrize(("height", "width"), [(24, 16), (27, 16), (24, 17), (27, 19)])
def test_a_ground_truth_is_cut_to_its_low_resolution(tmp_path, height, width):
    whole = photo(height, width)
    hr, lr = save(tmp_path / "hr" / "a.png", whole), save(tmp_path / "lr" / "a.png", RGB[:6, :4])
    pair = read_pair(PairFiles(str(hr), str(lr)))
    np.testing.assert_array_equal(pair.hr, whole[:24, :16])


@pytest.mark.parametrize(("height", "width"), [(24, 12), (23, 16), (28, 16), (24, 20)])
def test_sides_of_a_pair_must_be_4_to_1(tmp_path, height, width):
    hr = save(tmp_path / "hr" / "a.png", photo(height, width))
    lr = save(tmp_path / "lr" / "a.png", RGB[:6, :4])
    with pytest.raises(ValueError, match=rf"{width}x{height} .*4x6.* would be 16x24, and at most"):
        read_pair(PairFiles(str(hr), str(lr)))


# Sources


def shifted(shift: int) -> np.ndarray:
    return RGB + np.uint8(shift)


def save_series(folder: Path, shifts: range) -> list[str]:
    return [str(save(folder / f"{shift:02}.png", shifted(shift))) for shift in shifts]


def pack(folder: Path, *shards: list[str]) -> str:
    """Write the files of each list to a shard."""
    return str(write_folder(folder, *([Path(file).read_bytes() for file in s] for s in shards)))


def assert_holds(source, shifts: range) -> None:
    assert source.size == len(shifts)
    for index, shift in enumerate(shifts):
        np.testing.assert_array_equal(source.read(index), shifted(shift))


def test_a_folder_is_a_source(tmp_path):
    files = save_series(tmp_path, range(4))
    source = open_source(str(tmp_path))
    assert_holds(source, range(4))
    assert [source.name(i) for i in range(4)] == files


def test_a_manifest_of_something_else_changes_nothing(tmp_path):
    save_series(tmp_path, range(2))
    (tmp_path / "manifest.json").write_text('{"photographer": "me"}')
    assert_holds(open_source(str(tmp_path)), range(2))


def test_a_torn_manifest_of_records_is_named(tmp_path):
    folder = pack(tmp_path / "packed", save_series(tmp_path / "photos", range(2)))
    manifest = Path(folder) / "manifest.json"
    manifest.write_text(manifest.read_text()[:60])
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        open_source(folder)


def test_records_are_a_source(tmp_path):
    files = save_series(tmp_path / "photos", range(5))
    folder = pack(tmp_path / "packed", files[:2], [], files[2:])
    source = open_source(folder)
    assert_holds(source, range(5))
    assert [source.name(i).removeprefix(folder) for i in range(5)] == [
        "/0.array_record[0]",
        "/0.array_record[1]",
        "/2.array_record[0]",
        "/2.array_record[1]",
        "/2.array_record[2]",
    ]


def test_two_folders_of_pairs_are_a_source(tmp_path):
    hr = [str(save(tmp_path / "hr" / f"{i}.png", shifted(i))) for i in range(3)]
    for i in range(3):
        save(tmp_path / "lr" / f"{i}.png", shifted(i)[:6, :4])
    source = open_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))
    assert source.size == 3
    assert [source.name(i) for i in range(3)] == hr
    pair = source.read(2)
    assert isinstance(pair, Pair)
    np.testing.assert_array_equal(pair.hr, shifted(2))
    np.testing.assert_array_equal(pair.lr, shifted(2)[:6, :4])


def test_sources_are_numbered_through(tmp_path):
    first = save_series(tmp_path / "first", range(3))
    packed = pack(tmp_path / "packed", save_series(tmp_path / "more", range(3, 5)))
    last = save_series(tmp_path / "last", range(5, 6))
    folders = [str(tmp_path / "first"), packed, str(tmp_path / "last")]
    source = concatenate([open_source(folder) for folder in folders])
    assert_holds(source, range(6))
    names = [source.name(i) for i in range(6)]
    assert names == [*first, f"{packed}/0.array_record[0]", f"{packed}/0.array_record[1]", *last]


def test_a_damaged_record_is_named(tmp_path):
    folder = pack(tmp_path / "packed", save_series(tmp_path / "photos", range(5)))
    shard = Path(folder) / "0.array_record"
    data = bytearray(shard.read_bytes())
    place = data.find(save(tmp_path / "2.png", shifted(2)).read_bytes()[60:])
    data[place + 100] ^= 1  # one bit
    shard.write_bytes(data)
    source = open_source(folder)
    with pytest.raises(OSError, match=r"0\.array_record\[2\]' can't be read: Corrupted"):
        source.read(2)
    for index in (0, 1, 3, 4):
        np.testing.assert_array_equal(source.read(index), shifted(index))


def test_a_record_that_is_no_image_is_named(tmp_path):
    folder = write_folder(tmp_path / "packed", [b"<html>404</html>", b""])
    source = open_source(str(folder))
    for index, reason in enumerate(("not a whole JPEG", "is empty")):
        with pytest.raises(ImageError, match=rf"0\.array_record\[{index}\]: .*{reason}"):
            source.read(index)


def test_tfds_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"tfds:imagenet2012/train' needs .* pip install"):
        open_source("tfds:imagenet2012/train")


# Bad images


def test_the_next_image_stands_in_for_a_bad_one(tmp_path):
    save_series(tmp_path, range(10))
    damaged(tmp_path / "03.png")
    (tmp_path / "04.png").write_text("<html>404</html>")
    damaged(tmp_path / "09.png")
    source = open_source(str(tmp_path))
    expected = {3: (5, ["03.png", "04.png"]), 4: (5, ["04.png"]), 9: (0, ["09.png"])}
    for order in (range(10), reversed(range(10))):
        for index in order:
            used, image, rejected = read_or_next(source, 0.3, index)
            stand_in, bad = expected.get(index, (index, []))
            assert used == stand_in
            np.testing.assert_array_equal(image, shifted(used))
            assert len(rejected) == len(bad)
            assert all(name in reason for name, reason in zip(bad, rejected, strict=True))


def test_too_many_bad_images_in_a_row_are_listed(tmp_path):
    save_series(tmp_path, range(10))
    for name in ("03.png", "04.png", "07.png"):
        damaged(tmp_path / name)
    source = open_source(str(tmp_path))
    assert read_or_next(source, 0.1, 7).number == 8
    with pytest.raises(ValueError, match=r"2 of 10 images are bad.*0\.1.*03\.png.*04\.png"):
        read_or_next(source, 0.1, 3)


def test_without_a_good_image_reading_ends(tmp_path):
    for file in save_series(tmp_path, range(4)):
        damaged(Path(file))
    source = open_source(str(tmp_path))
    with pytest.raises(ValueError, match=r"4 of 4 images are bad"):
        read_or_next(source, 1.0, 1)
