from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from upsr_jax.data.sources import (
    eval_pairs,
    list_images,
    list_pairs,
    make_reader,
    read_image,
    read_pair,
)

RGB = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def save(path: Path, array: np.ndarray = RGB, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return str(path)


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
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}")), RGB)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_are_read_as_pillow_reads_them(tmp_path, suffix):
    file = save(tmp_path / f"a.{suffix}", np.repeat(np.repeat(RGB, 8, 0), 8, 1), quality=95)
    expected = np.asarray(Image.open(file)).astype(int)
    assert np.abs(read_image(file) - expected).mean() < 1


def test_grey_alpha_and_16_bits_become_8_bit_rgb(tmp_path):
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    np.testing.assert_array_equal(read_image(save(tmp_path / "grey.png", grey)), expected)
    deep = save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(deep), expected)
    alpha = save(tmp_path / "alpha.png", np.dstack([RGB, grey]))
    np.testing.assert_array_equal(read_image(alpha), RGB)


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned, the first row is the right-hand side
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, np.newaxis], 16, axis=1)
    image = read_image(save(tmp_path / "a.jpg", ramp, exif=exif, quality=95))
    assert image.shape == (16, 32, 3)
    assert image[:, 0].mean() > 240
    assert image[:, -1].mean() < 15


def damaged(path: Path) -> str:
    """Write a file that begins like an image."""
    data = Path(save(path)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return str(path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    damaged(tmp_path / "half.png")
    for name in ("empty.png", "page.jpg", "half.png", "missing.png"):
        with pytest.raises(OSError, match=name):
            read_image(str(tmp_path / name))


def test_pairs_are_matched_by_name(tmp_path):
    for name in ("b", "a", "sub/c"):
        save(tmp_path / "hr" / f"{name}.png")
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
    names, truths, inputs = zip(*eval_pairs(hr, lr), strict=True)
    assert names == ("a", "b", "sub/c")
    np.testing.assert_array_equal(truths[1], RGB)
    assert inputs[0].shape == (6, 4, 3)


def test_images_without_a_partner_are_listed(tmp_path):
    for name in ("hr/a.png", "hr/b.png", "hr/c.png", "lr/b.png", "lr/d.png"):
        save(tmp_path / name)
    with pytest.raises(ValueError, match=r"only one of them has a, c, d\."):
        list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))
    save(tmp_path / "hr/b.jpg")
    with pytest.raises(ValueError, match=r"b\.jpg.*b\.png.*share a name|b\.png.*b\.jpg.*share"):
        list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))


def test_sides_of_a_pair_must_be_4_to_1(tmp_path):
    save(tmp_path / "hr/a.png", RGB[:, :12])
    save(tmp_path / "lr/a.png", RGB[:6, :4])
    (files,) = list_pairs(str(tmp_path / "hr"), str(tmp_path / "lr"))
    with pytest.raises(ValueError, match=r"12x24 .*4x6.* would be 16x24"):
        read_pair(files)


def test_the_next_file_stands_in_for_a_bad_one(tmp_path, caplog):
    files = [save(tmp_path / f"{i}.png", RGB + np.uint8(i)) for i in range(10)]
    damaged(tmp_path / "3.png")  # found when it is read
    Path(files[4]).write_text("<html>404</html>")  # found up front
    damaged(tmp_path / "9.png")
    read = make_reader(files, read_image, max_bad_fraction=0.3)
    for order in (range(10), reversed(range(10))):
        for index in order:
            used, image = read(index)
            assert used == {3: 5, 4: 5, 9: 0}.get(index, index)
            np.testing.assert_array_equal(image, RGB + np.uint8(used))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    for name in ("3.png", "4.png", "9.png"):
        assert sum(name in message for message in messages) == 1


def test_too_many_bad_files_are_listed(tmp_path):
    files = [save(tmp_path / f"{i}.png") for i in range(10)]
    damaged(tmp_path / "3.png")
    damaged(tmp_path / "7.png")
    read = make_reader(files, read_image, max_bad_fraction=0.1)
    assert read(3)[0] == 4
    with pytest.raises(ValueError, match=r"2 of 10 images are bad.*0\.1.*3\.png.*7\.png"):
        read(7)


def test_bad_headers_are_found_before_the_first_read(tmp_path):
    files = [str(tmp_path / f"{i}.jpg") for i in range(4)]
    for file in files:
        Path(file).write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"2 of 4 images are bad.*0\.jpg"):
        make_reader(files, read_image, max_bad_fraction=0.25)
    with pytest.raises(ValueError, match=r"4 of 4 images are bad"):
        make_reader(files, read_image, max_bad_fraction=1.0)
