import tarfile

import pytest
from photos import write_photos
from tars import add, make_tar

from upsr_jax.data.archives import list_members, read_member


def read_all(members):
    return {member.name: read_member(member) for member in members}


def test_a_tar_of_tars_is_read_in_place(tmp_path):
    classes = {
        "n02": {f"n02_{i}.JPEG": bytes([i]) * (100 + 700 * i) for i in range(4)},
        "n01": {f"n01_{i}.JPEG": bytes([100 + i]) * (3000 - 900 * i) for i in range(3)},
    }
    path = tmp_path / "train.tar"
    path.write_bytes(make_tar({f"{name}.tar": make_tar(files) for name, files in classes.items()}))
    members, skipped = list_members([str(path)])
    expected = {
        f"{c}.tar/{name}": data for c, files in classes.items() for name, data in files.items()
    }
    assert read_all(members) == expected
    assert [member.name for member in members] == list(expected)  # in the order of the tar
    assert skipped == {}


def test_a_flat_tar_and_folders_are_read_in_order(tmp_path):
    (tmp_path / "val.tar").write_bytes(make_tar({"val/b.JPEG": b"bb", "val/a.JPEG": b"a"}))
    for name in ("z.png", "sub/y.jpg", "a.webp"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(name.encode())
    sources = [str(tmp_path / name) for name in ("val.tar", "photos")]
    members, _ = list_members(sources)
    assert [(m.source, m.name) for m in members] == [
        (sources[0], "val/b.JPEG"),
        (sources[0], "val/a.JPEG"),
        (sources[1], "a.webp"),
        (sources[1], "sub/y.jpg"),
        (sources[1], "z.png"),
    ]
    assert [read_member(m) for m in members] == [b"bb", b"a", b"a.webp", b"sub/y.jpg", b"z.png"]


def test_other_files_are_skipped_with_a_reason(tmp_path):
    photos = write_photos(tmp_path / "photos", 2)
    (photos / "notes.txt").write_text("no image")
    (photos / "._0.png").write_text("a resource fork")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "0.png", "0.png")
        add(tar, "readme", b"text")
        add(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="0.png")
    sources = [str(photos), str(tmp_path / "a.tar")]
    members, skipped = list_members(sources)
    assert [m.name for m in members] == ["0.png", "1.png", "0.png"]
    assert {
        name.removeprefix(str(tmp_path)): reason.split(",")[0] for name, reason in skipped.items()
    } == {
        "/photos/notes.txt": "its name does not end in .jpg",
        "/photos/._0.png": "its name begins with a dot",
        "/a.tar/readme": "its name does not end in .jpg",
        "/a.tar/link.png": "it is a link or a device",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a folder nor a whole, uncompressed tar"),
        (b"text" * 1000, "neither a folder nor a whole, uncompressed tar"),
        (
            make_tar({"a.jpg": b"a" * 9000}, "w:gz"),
            "neither a folder nor a whole, uncompressed tar",
        ),
        (make_tar({"a.jpg": b"a" * 9000})[:5000], "neither a folder nor a whole, uncompressed tar"),
        (make_tar({"b.tar": make_tar({"a.jpg": b"a" * 9000})[:5000]}), "neither a folder"),
        (make_tar({"a.txt": b"a"}), "holds no image"),
    ],
)
def test_what_is_no_whole_tar_of_images_is_refused(tmp_path, data, message):
    path = tmp_path / "source.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"source.tar.* {message}"):
        list_members([str(path)])


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar' does not exist"):
        list_members([str(tmp_path / "nowhere.tar")])
