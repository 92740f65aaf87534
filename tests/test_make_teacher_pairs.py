"""Pairs for learning from a teacher: drawn by their numbers, and whatever was made stays."""

import subprocess
import sys
from pathlib import Path

import pytest
from photos import write_photos

from upsr_jax.files.photos import read_rgb

ROOT = Path(__file__).parent.parent
TEACHER = """
def enlarge(lr):
    return lr.repeat(4, axis=1).repeat(4, axis=2)

def shrink(lr):
    return lr
"""


@pytest.fixture
def make(tmp_path):
    """Run the script on three photographs and a file that is none."""
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "bad.jpg").write_bytes(b"no photo")
    (tmp_path / "teacher.py").write_text(TEACHER)

    def run(out, *options, function="enlarge"):
        script = ROOT / "scripts" / "make_teacher_pairs.py"
        teacher = ["--teacher", f"{tmp_path / 'teacher.py'}:{function}"]
        command = [sys.executable, script, photos, *teacher, "--out", tmp_path / out, *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return run


def read_all(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_pairs_follow_from_their_numbers_and_what_is_missing_is_made(make, tmp_path):
    assert make("a", "--count", "5", "--batch", "2").stdout.endswith("5 pairs, 5 of them new\n")
    pairs = read_all(tmp_path / "a")
    assert len(pairs) == 15
    for i in range(5):
        lq, teacher, truth = (
            read_rgb(tmp_path / "a" / kind / f"{i:06}.png") for kind in ("lq", "teacher", "truth")
        )
        assert lq.shape == (64, 64, 3) and teacher.shape == truth.shape == (256, 256, 3)
        assert (teacher[::4, ::4] == lq).all() and (truth != teacher).any()
    (tmp_path / "a" / "lq" / "000003.png").unlink()
    assert "6 pairs, 2 of them new" in make("a", "--count", "6").stdout
    again = read_all(tmp_path / "a")
    assert {path: again[path] for path in pairs} == pairs and len(again) == 18


@pytest.mark.parametrize(
    ("options", "function", "message"),
    [
        ((), "nothing", "has no function nothing"),
        ((), "shrink", "returned uint8 [1, 64, 64, 3], but uint8 [1, 256, 256, 3] is needed"),
        (("--seed", "1"), "enlarge", "was begun with seed = 0, and this would be 1"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(make, tmp_path, options, function, message):
    if options:
        make("a", "--count", "1")
    ended = make("a", "--count", "1", *options, function=function)
    (line,) = (line for line in ended.stderr.splitlines() if "make_teacher_pairs: " in line)
    assert message in line and ended.returncode == 1
