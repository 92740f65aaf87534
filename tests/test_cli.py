"""`upsr` does every good file, names every bad one in a line, and never harms a file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from photos import enlarge, photo, read, save
from PIL import Image
from stand_in import restoration
from tiny_model import save_tiny_model
from typer.testing import CliRunner

from upsr_jax import cli
from upsr_jax.cli import Method, OutputFormat, Precision, app
from upsr_jax.files.photos import read_image
from upsr_jax.files.write_photo import FORMATS
from upsr_jax.sampler import METHODS
from upsr_jax.upscale import upscaler

ROOT = Path(__file__).parent.parent


def repeat_unless_black(params, lr, noise):
    """Repeat each pixel, or give NaN for pictures that are black at the corner."""
    return restoration(np.where(lr[:, :1, :1] == -1, np.nan, enlarge(lr)))


@pytest.fixture
def run(monkeypatch):
    """Run `upsr` with a model that repeats pixels; give exit code, output and errors."""

    def from_pretrained(folder, tile, **options):
        return upscaler.Upscaler(repeat_unless_black, {}, tile, recipe=options)

    monkeypatch.setattr(upscaler.Upscaler, "from_pretrained", from_pretrained)

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def test_files_and_folders_are_upscaled_into_a_mirrored_layout(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7, 1))
    b = save(tmp_path / "folder" / "b.bmp", photo(6, 4, 2))
    c = save(tmp_path / "folder" / "deep" / "c.v2.tif", photo(3, 3, 3))
    result = run("upscale", a, tmp_path / "folder", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"3 of 3 upscaled into {tmp_path / 'out'}\n"
    for source, target in [(a, "a.png"), (b, "b.png"), (c, "deep/c.v2.tiff")]:
        np.testing.assert_array_equal(read(tmp_path / "out" / target), enlarge(read(source)))


@pytest.mark.parametrize(
    "arguments",
    [
        "upscale a.png --out gs://bucket/out",
        "upscale gs://bucket/a.png --out out",
        "evaluate --images photos --out gs://bucket/out",
        "evaluate --images gs://bucket/photos --out out",
        "evaluate --images photos --model gs://bucket/model --out out",
        "export gs://bucket/run --out out",
        "export gs://bucket/model --to stablehlo --out out",
        "export lite_x4 --to stablehlo --out gs://bucket/out",
        "convert gs://bucket/a.pth out",
        "convert a.pth gs://bucket/out",
        "compare photos --out gs://bucket/out",
    ],
)
def test_a_bucket_is_refused_at_once_and_becomes_no_folder(tmp_path, run, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    save(tmp_path / "photos" / "a.png")
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert "gs:/" in result.stderr and "is a URL, and only folders are" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["a.png", "photos"]


def test_bad_files_are_named_after_which_the_others_are_done(tmp_path, run):
    good = save(tmp_path / "good.png", photo(5, 7, 1))
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    cut = save(tmp_path / "cut.png", photo(50, 50))
    cut.write_bytes(cut.read_bytes()[:900])
    missing = tmp_path / ("missing" * 50 + ".png")
    bare = tmp_path / "bare"
    bare.mkdir()
    black = save(tmp_path / "black.png", np.zeros((4, 4, 3), np.uint8))
    last = save(tmp_path / "last.png", photo(1, 1, 2))
    bad = [missing, bare, empty, text, cut, black]
    result = run(
        "upscale", empty, text, cut, missing, bare, good, black, last, "--out", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert result.stdout == f"2 of 8 upscaled into {tmp_path / 'out'}\n"
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == len(bad)
    for path in bad:
        assert sum(line.startswith(f"{path}: ") for line in lines) == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["good.png", "last.png"]


def test_existing_results_are_kept_unless_replacing_is_asked_for(tmp_path, run):
    a, b = save(tmp_path / "a.png", photo(5, 7, 1)), save(tmp_path / "b.png", photo(5, 7, 2))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    result = run("upscale", a, b, "--out", out)
    assert result.exit_code == 1
    assert f"{a}: {out / 'a.png'} exists already, and not as this" in result.stderr
    assert "add --overwrite" in result.stderr
    assert (out / "a.png").read_bytes() == b"mine"
    np.testing.assert_array_equal(read(out / "b.png"), enlarge(read(b)))

    assert run("upscale", a, b, "--out", out, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(read(out / "a.png"), enlarge(read(a)))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_what_this_very_command_has_done_is_not_done_again(tmp_path, run, monkeypatch, suffix):
    a, b = (save(tmp_path / "in" / f"{name}.png", photo(5, 7, 1)) for name in "ab")
    out = tmp_path / "out"
    command = ["upscale", a.parent, "--out", out, "--format", suffix]
    assert run("upscale", a, "--out", out, "--format", suffix).exit_code == 0
    first = (out / f"a.{suffix}").stat().st_ino

    result = run(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"2 of 2 upscaled into {out}, 1 of them earlier\n"
    assert (out / f"a.{suffix}").stat().st_ino == first

    monkeypatch.setattr(upscaler.Upscaler, "__call__", lambda *_, **__: pytest.fail("worked"))
    for flags in ([], ["--overwrite"]):
        assert run(*command, *flags).stdout == f"2 of 2 upscaled into {out}, 2 of them earlier\n"
    assert b.exists()


@pytest.mark.parametrize("flags", [["--seed", "1"], ["--fidelity", "0.5"], ["--tile", "64"], []])
def test_results_of_other_options_or_pictures_are_told_apart(tmp_path, run, flags):
    a, b = (save(tmp_path / "in" / f"{name}.png", photo(5, 7, 1)) for name in "ab")
    out = tmp_path / "out"
    assert run("upscale", a, "--out", out).exit_code == 0
    if not flags:
        save(a, photo(5, 7, 2))
    before = (out / "a.png").read_bytes()
    result = run("upscale", a, b, "--out", out, *flags)
    assert result.exit_code == 1
    assert f"{a}: {out / 'a.png'} exists already" in result.stderr
    assert (out / "a.png").read_bytes() == before
    result = run("upscale", a, b, "--out", out, *flags, "--overwrite")
    assert result.stdout == f"2 of 2 upscaled into {out}, 1 of them earlier\n"
    assert (out / "a.png").read_bytes() != before


def test_a_source_is_never_replaced_by_its_result(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7))
    before = a.read_bytes()
    result = run("upscale", a, "--out", tmp_path, "--overwrite")
    assert result.exit_code == 1
    assert f"{a}: its result would replace it" in result.stderr
    assert a.read_bytes() == before


def test_results_inside_the_input_folder_are_not_upscaled_again(tmp_path, run):
    save(tmp_path / "a.png", photo(5, 7))
    for _ in range(2):
        result = run("upscale", tmp_path, "--out", tmp_path / "out", "--overwrite")
        assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path / "out") == ["a.png"]


def test_all_that_a_shell_names_by_a_star_is_done_twice(tmp_path, run, monkeypatch):
    """Sidecar files, pictures that only their suffix tells apart, and later the results too."""
    monkeypatch.chdir(tmp_path)
    for name in ("IMG_1.JPG", "a.jpg", "a.png", "d1/a.png", "d2/a.png"):
        save(tmp_path / name, photo(5, 7))
    for earlier in ("", ", 5 of them earlier"):
        result = run("upscale", *sorted(os.listdir()), "--out", "out")
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout == f"5 of 5 upscaled into out{earlier}\n"
    names = ["IMG_1.jpg", "a.jpg", "a.png", "d1/a.png", "d2/a.png"]
    assert sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.*")) == names
    (tmp_path / "IMG_1.xmp").write_text("<xmp/>")
    result = run("upscale", *sorted(os.listdir()), "--out", "out")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("IMG_1.xmp: not a whole JPEG, PNG")
    assert result.stdout == "5 of 6 upscaled into out, 5 of them earlier\n"


@pytest.mark.parametrize("name", ["large.png", "large.PNG", "x/large.jpeg", "large.webp"])
def test_one_photo_may_be_given_the_name_of_its_result(tmp_path, run, name):
    a = save(tmp_path / "a.png", np.full((8, 8, 3), 100, np.uint8))
    result = run("upscale", a, "--out", tmp_path / name)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"1 of 1 upscaled into {tmp_path / name}\n"
    assert np.abs(read(tmp_path / name).astype(int) - 100).max() <= 2
    with Image.open(tmp_path / name) as image:
        assert image.format == name.rpartition(".")[2].upper().replace("JPG", "JPEG")
    assert run("upscale", a, "--out", tmp_path / name).stdout.endswith(", 1 of them earlier\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.png", "b.png", "--out", "x.png"], "--out x.png names one picture, and here may be"),
        ([".", "--out", "x.png"], "--out x.png names one picture, and here may be several"),
        (["a.png", "--out", "x.gif"], "x.gif: the name must end in one of .png, .jpg, .webp"),
        (["a.png", "--out", "x.png", "--suffix", "_x4"], "--out x.png names the result; leave out"),
        (["a.png", "--out", "x", "--suffix", "../x"], "--suffix ../x holds a separator of"),
        (["a.png", "--out", "x", "--scale", "2", "--width", "9"], "give either a scale or a width"),
        (["-", "a.png", "--out", "x"], "- stands for one photo: name no other beside it"),
        (["-", "--out", "x"], "--out x is a folder: a photo from stdin needs a name"),
        (["-", "--out", "x.gif"], "x.gif: the name must end in one of .png, .jpg, .webp"),
        (["-", "--out", "x.png", "--json", "--dry-run"], "- goes without --dry-run, --json: name"),
        (["a.png", "--out", "-", "--uncertainty"], "- goes without --uncertainty: name both"),
        (["a.png", "--out", "x.png", "--format", "jpg"], "--out x.png is not of --format jpg"),
    ],
)
def test_a_name_that_can_not_be_that_of_the_result_is_refused(
    tmp_path, run, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        save(tmp_path / name)
    result = run("upscale", *arguments)
    assert result.exit_code == 2 and result.stderr.startswith(f"upsr: {words}")
    assert sorted(os.listdir()) == ["a.png", "b.png"]


def test_a_home_folder_that_no_shell_has_put_in_is_found(tmp_path, run, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    a = save(tmp_path / "in" / "a.png")
    assert run("upscale", a, "--out=~/results").exit_code == 0
    assert (tmp_path / "results" / "a.png").exists()
    monkeypatch.chdir(tmp_path)
    run("evaluate", "--images=~/in", "--out=~/evaluated", "--model=~/none")
    assert not Path("~").exists()


def test_names_steer_no_terminal(tmp_path, run):
    """ESC begins a colour, OSC a title, CR writes over a line, U+202E turns one round."""
    name = "a\x1b[31m\x1b]0;title\x07\r\n\u202egnp.png"
    shown = r"a\x1b[31m\x1b]0;title\x07\r\n\u202egnp.png"
    (tmp_path / name).write_text("no picture")
    for arguments in ([tmp_path, "--out", tmp_path / "out"], [tmp_path / name, "--out", name]):
        result = run("upscale", *arguments)
        assert shown in result.stderr
        assert not set(result.output) & set("\x1b\x07\r\u202e")
        assert all(line.isprintable() for line in result.output.split("\n"))


def test_the_same_file_given_twice_is_done_once(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7))
    result = run("upscale", a, tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 of 1 upscaled")


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none"])
def test_an_impossible_output_folder_is_refused_before_any_work(tmp_path, run, monkeypatch, out):
    monkeypatch.setattr(cli, "load_upscaler", lambda *_: pytest.fail("loaded a model"))
    (tmp_path / "file").touch()
    a = save(tmp_path / "a.png", photo(5, 7))
    result = run("upscale", a, "--out", tmp_path / out)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert f"{tmp_path / out}: no folder to write to" in result.stderr


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_can_be_asked_for(tmp_path, run, suffix):
    colour = np.array([100, 110, 120], np.uint8)
    a = save(tmp_path / "a.png", np.full((8, 8, 3), colour))
    assert run("upscale", a, "--out", tmp_path / "out", "--format", suffix).exit_code == 0
    found = read(tmp_path / "out" / f"a.{suffix}")
    assert found.shape == (32, 32, 3)
    assert np.abs(found - colour.astype(int)).max() <= 3


def test_what_the_format_cannot_hold_is_said_before_the_work(tmp_path, run, monkeypatch):
    monkeypatch.setattr(upscaler.Upscaler, "__call__", lambda *_, **__: pytest.fail("worked"))
    a = save(tmp_path / "a.png", photo(1, 4096))
    result = run("upscale", a, "--out", tmp_path / "out", "--format", "webp")
    assert result.exit_code == 1
    assert "at most 16383 pixels a side" in result.stderr


def test_a_result_is_of_the_photo_s_format_or_png(tmp_path, run):
    names = {"a.JPG": "a.jpg", "b.webp": "b.webp", "c.gif": "c.png", "d.bmp": "d.png"}
    for name in names:
        save(tmp_path / "in" / name, photo(8, 8))
    wide = save(tmp_path / "in" / "e.webp", photo(1, 4096))  # four times that is no webp
    for earlier in ("", f", {len(names) + 1} of them earlier"):
        result = run("upscale", tmp_path / "in", "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"5 of 5 upscaled into {tmp_path / 'out'}{earlier}\n"
    assert sorted(os.listdir(tmp_path / "out")) == [*names.values(), "e.png"]
    np.testing.assert_array_equal(read(tmp_path / "out" / "e.png"), enlarge(read(wide)))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--scale", "2.5"], (20, 30)),
        (["--scale", "16"], (128, 192)),
        (["--width", "50"], (33, 50)),
        (["--height", "8"], (8, 12)),
        (["--width", "50", "--height", "50"], (50, 50)),
        (["--max-side", "40"], (27, 40)),
        (["--max-side", "400"], (32, 48)),
    ],
)
def test_results_of_any_size(tmp_path, run, options, size):
    save(tmp_path / "in" / "a.png", photo(8, 12))
    command = ["upscale", tmp_path / "in", "--out", tmp_path / "out", "--suffix", "_large"]
    assert run(*command, *options).exit_code == 0
    assert read(tmp_path / "out" / "a_large.png").shape == (*size, 3)
    assert run(*command, *options).stdout.endswith("1 of them earlier\n")
    result = run(*command, "--scale", "3")
    assert result.exit_code == 1 and "exists already, and not as this" in result.stderr


def test_a_size_that_can_not_be_is_the_photo_s_fault_alone(tmp_path, run):
    small, large = save(tmp_path / "a.png", photo(2, 2)), save(tmp_path / "b.png", photo(20, 20))
    result = run("upscale", small, large, "--out", tmp_path / "out", "--width", "100")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{small}: a photo of 2x2 can't become 100x100: a side may")
    assert os.listdir(tmp_path / "out") == ["b.png"]


def test_each_photo_is_a_line_of_json(tmp_path, run):
    a, b = save(tmp_path / "a.png", photo(5, 7)), tmp_path / "b.png"
    b.write_text("no picture")
    result = run("upscale", a, b, "--out", tmp_path / "out", "--json")
    lines = {line["source"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 1 and len(lines) == 2
    done = lines[str(a)]
    assert (done["target"], done["width"], done["height"]) == (str(tmp_path / "out/a.png"), 28, 20)
    assert done["earlier"] is False and done["warnings"] == [] and done["seconds"] >= 0
    assert lines[str(b)]["error"].startswith(f"{b}: not a whole JPEG")


def test_what_would_be_done_is_said_and_not_done(tmp_path, run, monkeypatch):
    monkeypatch.setattr(cli, "load_upscaler", lambda *_: pytest.fail("loaded a model"))
    a = save(tmp_path / "a.jpg", photo(5, 7))
    result = run("upscale", a, "--out", tmp_path / "out", "--dry-run", "--scale", "2")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{a} -> {tmp_path / 'out' / 'a.jpg'} (14x10)\n"
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_errors_alone_are_printed_if_that_is_asked_for(tmp_path, run):
    a, b = save(tmp_path / "a.jpg", photo(5, 7)), save(tmp_path / "b.jpg", photo(99, 99))
    b.write_bytes(b.read_bytes()[:-1000] + bytes(998) + b"\xff\xd9")  # damaged, which is a warning
    command = ["upscale", a, b, tmp_path / "none", "--out", tmp_path / "out"]
    assert "damaged, and may look wrong" in run(*command).stderr
    result = run(*command, "--overwrite", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{tmp_path / 'none'}: no such file.\n"


def test_a_map_of_uncertainty_lies_beside_the_result(tmp_path, run):
    a = save(tmp_path / "a.jpg", photo(5, 7))
    command = ["upscale", a, "--out", tmp_path / "out"]
    assert run(*command).exit_code == 0
    for earlier in (False, True):
        result = run(*command, "--uncertainty", "--overwrite")
        assert result.exit_code == 0, result.output
        assert ("earlier" in result.stdout) == earlier
    assert sorted(os.listdir(tmp_path / "out")) == ["a.jpg", "a.uncertainty.png"]
    assert read(tmp_path / "out" / "a.uncertainty.png").shape == (20, 28, 3)


def test_a_photo_from_stdin_goes_to_a_file_or_stdout(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7))

    def piped(*arguments, data=b""):
        command = ["upscale", *map(str, arguments)]
        return CliRunner().invoke(app, command, input=data or a.read_bytes())

    result = piped("-", "--out", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    np.testing.assert_array_equal(read_image(result.stdout_bytes), enlarge(photo(5, 7)))
    assert run("upscale", a, "--out", "-").stdout_bytes == result.stdout_bytes
    large = tmp_path / "x" / "large.tiff"
    assert piped("-", "--out", large, "--scale", "2").exit_code == 0
    assert read(large).shape == (10, 14, 3)
    result = piped("-", "--out", large)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "large.tiff: exists already" in result.stderr
    result = piped("-", "--out", "-", data=b"no picture")
    assert (result.exit_code, result.stdout_bytes) == (1, b"")
    assert result.stderr.startswith("upsr: image: not a whole JPEG")


def start(*arguments) -> subprocess.Popen:
    """Start `upsr` as a process, with a model that takes its time."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` has ignored
sys.path.insert(0, "tests")
from stand_in import repeat
from upsr_jax import cli
from upsr_jax.upscale import upscaler
def slow(*inputs):
    time.sleep(0.2)
    return repeat(*inputs)
upscaler.Upscaler.from_pretrained = lambda *_, **__: upscaler.Upscaler(slow, {})
cli.app()
"""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def wait_for(pattern: str, folder: Path) -> None:
    for _ in range(600):
        if any(folder.rglob(pattern)):
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_it_with_one_line_and_whole_files(tmp_path, name):
    for i in range(100):
        save(tmp_path / "in" / f"{i}.png", photo(5, 7))
    process = start("upscale", tmp_path / "in", "--out", tmp_path / "out")
    wait_for("*.png", tmp_path / "out")
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert output == ""
    said = "upsr: stopped; the same command goes on from there, and what is done is whole.\n"
    assert errors == said
    written = os.listdir(tmp_path / "out")
    assert 1 <= len(written) < 100
    for file in written:
        np.testing.assert_array_equal(read(tmp_path / "out" / file), enlarge(photo(5, 7)))


def test_two_that_do_the_same_at_once_are_both_right(tmp_path):
    for i in range(12):
        save(tmp_path / "in" / f"{i}.png", photo(5, 7))
    command = "upscale", tmp_path / "in", "--out", tmp_path / "out"
    processes = [start(*command) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert output.startswith("12 of 12 upscaled into ")
    assert len(os.listdir(tmp_path / "out")) == 12


def test_a_killed_run_leaves_no_part_of_a_result(tmp_path):
    a = save(tmp_path / "a.png", photo(5, 7))
    # Stop in the worst moment: the picture is written, but has not got its name yet.
    code = f"""
import os, time
from upsr_jax.files.photos import read_image
from upsr_jax.files.write_photo import write_image
os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(60))
write_image({str(tmp_path / "out" / "a.png")!r}, read_image({str(a)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout and process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (left,) = os.listdir(tmp_path / "out")
    assert left.startswith(".upsr-")
    assert left.endswith(".part")


@pytest.mark.parametrize("model", ["gone", "file"])
def test_a_bad_model_is_named_in_one_line(tmp_path, model):
    (tmp_path / "file").touch()
    a = save(tmp_path / "a.png", photo(5, 7))
    arguments = [
        "upscale",
        str(a),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tmp_path / model),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert str(tmp_path / model) in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bad_tile_is_refused_in_one_line(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7))
    result = run("upscale", a, "--out", tmp_path / "out", "--tile", "100")
    assert result.exit_code == 2
    assert (
        result.stderr == "upsr: tile is 100, but must be a multiple of 64 above the overlap, 32\n"
    )


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(tmp_path, run, seed):
    a = save(tmp_path / "a.png", photo(5, 7))
    assert run("upscale", a, "--out", tmp_path / "out", "--seed", seed).exit_code == 2


def test_sampling_options_reach_the_model(tmp_path, monkeypatch):
    given = []

    def from_pretrained(folder, tile, **options):
        given.append(options)
        return upscaler.Upscaler(repeat_unless_black, {}, tile)

    monkeypatch.setattr(upscaler.Upscaler, "from_pretrained", from_pretrained)
    a = save(tmp_path / "a.png", photo(5, 7))
    options = ["--steps", "3", "--sampler", "ancestral", "--min-noise", "0.2", "--fidelity", "0.5"]
    result = CliRunner().invoke(app, ["upscale", str(a), "--out", str(tmp_path / "o"), *options])
    assert result.exit_code == 0, result.output
    sampling = dict(steps=3, method="ancestral", min_noise=0.2, fidelity=0.5)
    assert given == [dict(device=None, precision=None) | sampling]


def test_every_sampler_format_and_precision_can_be_chosen():
    assert tuple(Method) == METHODS
    assert tuple(OutputFormat) == ("auto", *FORMATS)
    assert tuple(Precision) == upscaler.PRECISIONS


@pytest.mark.parametrize("option", [["--steps", "5"], ["--sampler", "ddim"]])
def test_the_built_in_model_refuses_what_it_has_not_learned(tmp_path, option):
    a = save(tmp_path / "a.png", photo(5, 7))
    result = CliRunner().invoke(app, ["upscale", str(a), "--out", str(tmp_path / "out"), *option])
    assert result.exit_code == 2
    assert result.stderr.startswith("upsr: this model was trained to restore in one step")
    assert result.stderr.count("\n") == 1


def test_processes_need_all_their_flags(tmp_path, run):
    a = save(tmp_path / "a.png", photo(5, 7))
    result = run("upscale", a, "--out", tmp_path / "out", "--processes", "2")
    assert result.exit_code == 2
    assert "needs --coordinator and --process_id too" in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_is_fast_and_does_not_import_jax():
    code = "import sys; from upsr_jax.cli import app; sys.argv[1:] = ['upscale', '--help']\n"
    code += "try: app()\nfinally: print('jax' in sys.modules)"
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - start < 5  # a second when nothing else runs
    assert "Upscale photos x4" in run.stdout
    assert run.stdout.splitlines()[-1] == "False"


def test_the_command_upscales_with_a_model_folder(tmp_path):
    """The whole way in real processes: same seed, same bytes, from the compilation cache too."""
    model = save_tiny_model(tmp_path / "tiny")
    a = save(tmp_path / "a.png", photo(30, 40))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    command = [sys.executable, "-c", "from upsr_jax.cli import app; app()"]

    def upscale(out):
        arguments = ["upscale", a, "--out", tmp_path / out, "--model", model]
        run = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        return (tmp_path / out / "a.png").read_bytes()

    first = upscale("first")
    assert read(tmp_path / "first" / "a.png").shape == (120, 160, 3)
    assert os.listdir(tmp_path / "cache" / "upsr_jax")
    assert upscale("second") == first


def test_info_describes_a_model(tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    result = CliRunner().invoke(app, ["info", str(model)])
    assert result.exit_code == 0, result.output
    assert f"tiny ({model})" in result.stdout
    assert '"kappa": 2.5' in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("upscale", "a.png", "--out", "out"),
        ("evaluate", "--images", "a", "--out", "out"),
        ("convert", "x.pth", "model"),
        ("export", "run", "--out", "model"),
        ("info",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_device_is_one_sentence(arguments, tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': none\nmore")

    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", photo(5, 7))
    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr == (
        "upsr: JAX found no device to run on (Unable to initialize backend 'cuda': none), with "
        "JAX_PLATFORMS=cuda: unset that, or install JAX for your device, as upsr_jax[cuda12] does\n"
    )


def test_models_are_listed_and_one_that_is_damaged_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("UPSR_MODELS", str(tmp_path))
    save_tiny_model(tmp_path / "tiny")
    (save_tiny_model(tmp_path / "bad") / "sha256").unlink()
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 1
    built_in, tiny = result.stdout.splitlines()
    assert built_in.split()[:2] == ["lite_x4", "7,749,981"]
    assert tiny.startswith("tiny ") and " parameters, " in tiny
    bad, where = result.stderr.splitlines()
    assert bad.startswith(f"bad: {tmp_path / 'bad' / 'sha256'} is missing")
    assert where == f"Your folder of models is {tmp_path}"
    assert f"tiny ({tmp_path / 'tiny'})" in CliRunner().invoke(app, ["info", "tiny"]).stdout


def test_a_card_is_written_into_a_model_of_ones_own_alone(tmp_path):
    model = save_tiny_model(tmp_path / "tiny")
    result = CliRunner().invoke(app, ["card", str(model), "--license", "mit"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert (model / "README.md").read_text().startswith("---\nlicense: mit\n")
    assert CliRunner().invoke(app, ["card", str(model)]).exit_code == 2
    refused = CliRunner().invoke(app, ["card", "lite_x4"])
    assert refused.exit_code == 2 and "name a model of your own" in refused.stderr


@pytest.mark.parametrize(
    ("words", "completed"), [("upsr up", "upscale"), ("upsr upscale --fid", "--fidelity")]
)
def test_a_shell_completes_commands_and_options(words, completed):
    variables = {"_UPSR_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": words}
    result = CliRunner().invoke(app, prog_name="upsr", env=variables)
    assert completed in result.stdout


def test_help_tells_the_exit_codes():
    assert "Exit codes: 0 all is done, 1 something" in CliRunner().invoke(app, ["--help"]).stdout
