import fcntl
import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tars import make_tar

from upsr_jax.data.records import open_shards, read_manifest
from upsr_jax.data.sources import open_source
from upsr_jax.files.photos import read_rgb

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "upsr_jax" / "assets" / "photos"
JPEG = (PHOTOS / "rocket.jpg").read_bytes()
PNG = (PHOTOS / "chelsea.png").read_bytes()


def command(*arguments):
    return [sys.executable, ROOT / "scripts" / "prepare_imagenet.py", *map(str, arguments)]


def prepare(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def train_tar(tmp_path_factory):
    """Write a tar of tars with 5 images, a PNG named JPEG among them, and 3 files that are none."""
    classes = {
        "n01440764.tar": {
            "n01440764_1.JPEG": JPEG,
            "n01440764_2.JPEG": JPEG[: len(JPEG) // 2],
            "n01440764_3.JPEG": PNG,
        },
        "n01443537.tar": {
            "n01443537_1.JPEG": PNG,
            "n01443537_2.JPEG": b"",
            "n01443537_3.JPEG": JPEG,
            "notes.txt": b"text",
            "n01443537_4.JPEG": JPEG,
        },
    }
    path = tmp_path_factory.mktemp("tars") / "train.tar"
    path.write_bytes(make_tar({name: make_tar(files) for name, files in classes.items()}))
    return path


def test_a_tar_of_tars_becomes_shards_of_its_files(train_tar, tmp_path):
    out = tmp_path / "packed"
    run = prepare(train_tar, "--out", out, "--shards", 2)
    assert run.returncode == 0, run.stderr
    assert "packed: 5 images in 2 shards" in run.stdout
    assert "3 files were left out" in run.stdout
    assert "7/7" in run.stderr  # the progress bar

    data, shards = open_shards(str(out))
    assert [data[i] for i in range(5)] == [JPEG, PNG, PNG, JPEG, JPEG]
    assert list(shards.values()) == [2, 3]
    manifest = read_manifest(out)
    assert manifest["sources"] == [str(train_tar)]
    assert {name.removeprefix(f"{train_tar}/") for name in manifest["skipped"]} == {
        "n01440764.tar/n01440764_2.JPEG",
        "n01443537.tar/n01443537_2.JPEG",
        "n01443537.tar/notes.txt",
    }
    for name, shard in manifest["shards"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == shard["sha256"]


def test_packed_folders_train_like_the_folders(tmp_path):
    out = tmp_path / "packed"
    assert prepare(PHOTOS, "--out", out).returncode == 0
    packed, folder = open_source(str(out)), open_source(str(PHOTOS))
    assert packed.size == folder.size == 6
    for i in range(6):
        assert (packed.read(i) == read_rgb(folder.name(i))).all()
    assert list(read_manifest(out)["skipped"]) == [f"{PHOTOS}/CREDITS.md"]


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory):
    """Write a folder of 240 photographs, which take some time to decode, and one damaged."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    folder.mkdir()
    for i in range(240):
        (folder / f"{i:03}.png").write_bytes(PNG[: len(PNG) // 2] if i == 100 else PNG)
    return folder


def is_writing(folder, finished):
    """Tell whether so many shards are finished, and something is being written."""
    if not (folder / "manifest.json").exists():
        return False
    shards = read_manifest(folder)["shards"]
    return len(shards) >= finished and any(folder.glob(".upsr-*.part"))


def test_killed_and_started_again_it_makes_the_same_bytes(many_photos, tmp_path):
    arguments = (many_photos, "--shards", 12, "--out")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert prepare(*arguments, whole).returncode == 0
    for finished in (0, 2, 5):
        process = subprocess.Popen(command(*arguments, resumed), stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not is_writing(resumed, finished):
            assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        done = len(read_manifest(resumed)["shards"])
        assert finished <= done < 12
        with pytest.raises(ValueError, match=rf"unfinished, with {done} of 12 shards"):
            open_source(str(resumed))
        stamps = {path: path.stat().st_mtime_ns for path in resumed.glob("*.array_record")}
    assert prepare(*arguments, resumed).returncode == 0
    assert contents(resumed) == contents(whole)
    assert open_source(str(resumed)).size == 239
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())

    before = contents(whole)
    (whole / "images-00004-of-00012.array_record").unlink()
    damaged = whole / "images-00007-of-00012.array_record"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    run = prepare(*arguments, whole)
    assert run.returncode == 0  # makes what is missing or damaged, and only that
    assert run.stderr.count("is damaged and made again") == 1
    assert f"{damaged} is damaged" in run.stderr
    assert contents(whole) == before


def test_other_sources_and_settings_are_refused(train_tar, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        (photos / f"{i}.jpg").write_bytes(JPEG)
    out = tmp_path / "packed"
    assert prepare(photos, "--out", out).returncode == 0
    before = contents(out)

    run = prepare(train_tar, "--out", out)
    assert run.returncode == 1
    assert f"was begun with sources = ['{photos}'], and this would be" in run.stderr
    assert "was begun with num_shards = 1" in prepare(photos, "--out", out, "--shards", 2).stderr
    (photos / "3.jpg").write_bytes(JPEG)
    assert "was begun with num_files = 3" in prepare(photos, "--out", out).stderr
    (photos / "2.jpg").unlink()
    assert "was begun with listing_sha256" in prepare(photos, "--out", out).stderr
    assert contents(out) == before


def test_what_cannot_be_done_is_said_in_a_sentence(train_tar, tmp_path):
    for arguments, message in [
        ((tmp_path / "nowhere", "--out", tmp_path / "a"), "nowhere' does not exist"),
        ((train_tar, "--out", tmp_path / "a", "--shards", 9), "7 images can't fill 9 shards"),
        ((train_tar, "--out", train_tar), "File exists"),
    ]:
        run = prepare(*arguments)
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1].startswith("prepare_imagenet: ")
        assert message in run.stderr
        assert "Traceback" not in run.stderr


def test_a_full_disk_is_an_error_and_the_shards_before_it_stay(many_photos, tmp_path):
    code = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    out = tmp_path / "packed"
    run = subprocess.run(
        [sys.executable, "-c", code, *command(many_photos, "--out", out, "--shards", 2)[1:]],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "prepare_imagenet: " in run.stderr and "can't be written" in run.stderr
    assert not list(out.glob("*.array_record"))
    assert prepare(many_photos, "--out", out, "--shards", 2).returncode == 0


def test_two_at_a_time_are_refused(train_tar, tmp_path):
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = prepare(train_tar, "--out", tmp_path)
    assert run.returncode == 1 and "another process is writing to" in run.stderr
    assert prepare(train_tar, "--out", tmp_path).returncode == 0
