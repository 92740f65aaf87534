import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from photos import draw_photo
from tars import make_tar

from scripts.prepare_imagenet_test import degrade_square
from upsr_jax.data.sources import list_pairs, read_pair
from upsr_jax.files.photos import read_rgb
from upsr_jax.files.whole import locked

ROOT = Path(__file__).parent.parent


def command(*arguments):
    return [sys.executable, ROOT / "scripts" / "prepare_imagenet_test.py", *map(str, arguments)]


def make(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True)


def pictures(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}


def pairs_of(out):
    files = list_pairs(str(out / "gt"), str(out / "lq"))
    return [(Path(pair.hr).stem, *read_pair(pair)) for pair in files]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write 60 photographs, one of them damaged, one small and one that is 256 pixels square."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(60):
        size = {7: (200, 300), 11: (256, 256)}.get(i, (260, 300 + i))
        data = cv2.imencode(".jpg", draw_photo(i, *size)[..., ::-1])[1].tobytes()
        (folder / f"val_{i:02}.JPEG").write_bytes(data[: len(data) // 2] if i == 5 else data)
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "test"
    run = make(photos, "--out", out, "--count", 58)
    assert run.returncode == 0, run.stderr
    assert "58 pairs; 2 images were unfit" in run.stdout
    assert "58/58" in run.stderr
    return out


def test_ground_truths_are_centre_squares(photos, made):
    pairs = pairs_of(made)
    assert [name for name, _, _ in pairs] == [f"val_{i:02}" for i in range(60) if i not in (5, 7)]
    for name, gt, lq in pairs:
        assert gt.shape == (256, 256, 3)
        assert lq.shape == (64, 64, 3)
        photo = read_rgb(str(photos / f"{name}.JPEG"))
        side, width = photo.shape[:2]
        square = photo[:, (width - side) // 2 :][:, :side]
        # The share that each pixel of the photograph, and each of the result, have in common
        edges = np.arange(257) * side / 256
        overlap = np.minimum(edges[1:, None], np.arange(1, side + 1)) - np.maximum(
            edges[:-1, None], np.arange(side)
        )
        area = np.clip(overlap, 0, None) * 256 / side
        expected = np.einsum("ih, jw, hwc -> ijc", area, area, square, optimize=True)
        np.testing.assert_allclose(gt, expected, rtol=0, atol=0.51)


def test_low_resolution_images_are_degraded_a_little(made):
    errors = [
        np.square((gt.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) - lq) / 255).mean()
        for _, gt, lq in pairs_of(made)
    ]
    assert 22 < -10 * np.log10(np.median(errors)) < 40
    assert len(set(errors)) == len(errors)


def test_the_manifest_describes_every_file(photos, made):
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in sorted(pictures(made).items())
    }
    assert (manifest["count"], manifest["seed"], manifest["size"]) == (58, 0, 256)
    assert manifest["degradation"]["final"]["jpeg_quality"] == [80, 100]
    assert manifest["source"] == str(photos)
    assert manifest["skipped"].keys() == {"val_05.JPEG", "val_07.JPEG"}
    assert "300x200" in manifest["skipped"]["val_07.JPEG"]


def test_a_tar_of_the_same_files_gives_the_same_pairs(photos, made, tmp_path):
    files = sorted(photos.iterdir(), reverse=True)
    tar = tmp_path / "val.tar"
    tar.write_bytes(make_tar({path.name: path.read_bytes() for path in files}))
    out = tmp_path / "test"
    assert make(tar, "--out", out, "--count", 20).returncode == 0
    some = pictures(out)
    assert len(some) == 40
    assert some.items() <= pictures(made).items()


def test_another_seed_takes_and_degrades_others(photos, made, tmp_path):
    assert make(photos, "--out", tmp_path, "--count", 20, "--seed", 1).returncode == 0
    others, ours = pictures(tmp_path), pictures(made)
    common = [name for name in others.keys() & ours.keys() if name.startswith("lq")]
    assert common and all(others[name] != ours[name] for name in common)
    assert make(photos, "--out", tmp_path / "0", "--count", 20).returncode == 0
    assert pictures(tmp_path / "0").keys() != others.keys()


def test_killed_and_started_again_it_makes_the_same_files(photos, made, tmp_path):
    out = tmp_path / "test"
    for finished in (1, 40):
        process = subprocess.Popen(
            command(photos, "--out", out, "--count", 58), stderr=subprocess.DEVNULL
        )
        while len(pictures(out)) < finished:
            assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert make(photos, "--out", out, "--count", 58).returncode == 0
    assert pictures(out) == pictures(made)
    assert not list(out.rglob(".upsr-*"))
    damaged = min(out.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert make(photos, "--out", out, "--count", 58).returncode == 0
    assert pictures(out) == pictures(made)
    assert (out / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()


def test_what_cannot_be_done_is_said_in_a_sentence(photos, made, tmp_path):
    for arguments, message in [
        ((photos, "--out", made, "--count", 20), "was begun with count = 58, and this would be 20"),
        ((photos, "--out", tmp_path, "--count", 59), "has only 58 images fit for 59 pairs"),
        ((photos / "nowhere", "--out", tmp_path), "nowhere' does not exist"),
    ]:
        run = make(*arguments)
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1].startswith("prepare_imagenet_test: ")
        assert message in run.stderr


def test_two_at_a_time_are_refused(photos, tmp_path):
    with locked(tmp_path):
        run = make(photos, "--out", tmp_path, "--count", 1)
    assert run.returncode == 1
    assert f"another process is writing to {tmp_path}" in run.stderr
    assert not pictures(tmp_path)


def test_a_damaged_manifest_is_named(photos, tmp_path):
    (tmp_path / "manifest.json").write_text("")
    run = make(photos, "--out", tmp_path, "--count", 1)
    assert run.returncode == 1
    assert f"prepare_imagenet_test: {tmp_path / 'manifest.json'} is damaged: remove" in run.stderr


def test_two_images_of_one_name_are_refused(photos, tmp_path):
    first, second = tmp_path / "in" / "a.png", tmp_path / "in" / "a.jpg"
    first.parent.mkdir()
    for path in (first, second):
        path.write_bytes(b"")
    run = make(tmp_path / "in", "--out", tmp_path / "out")
    assert run.returncode == 1
    assert "has several images named a, suffix aside" in run.stderr


def test_a_square_is_taken_from_the_middle():
    photo = np.zeros((256, 400, 3), np.uint8)
    photo[:, 72:328] = 200
    hr, _ = degrade_square(np.random.default_rng(0), photo)
    assert (hr == 200).all()
    hr, _ = degrade_square(np.random.default_rng(0), photo.swapaxes(0, 1))
    assert (hr == 200).all()
