"""Evaluation goes on where it stopped: what is whole is kept, what is not is done again."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from photos import read, save
from stand_in import make_noisy_resize, write_pair, write_set
from tiny_model import changed

from upsr_jax.evaluation.run import evaluate_folders
from upsr_jax.files.write_photo import write_image
from upsr_jax.train.evaluate import evaluate
from upsr_jax.upscale import upscaler as upscaler_module

pytestmark = pytest.mark.usefixtures("no_networks")


def make_nothing(config: ConfigDict, fidelity: float):
    def restore(params, lr, noise):
        raise AssertionError("there was something to do")

    return restore


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ConfigDict:
    return changed(write_set(tmp_path_factory.mktemp("pairs")), eval__metrics=("psnr_y",)).lock()


@pytest.fixture(scope="module")
def results(config, workdir) -> dict:
    """The results of an evaluation; its files are in workdir."""
    return evaluate(config, workdir)


def test_only_what_is_missing_is_done(config, workdir, results, monkeypatch):
    out = workdir / "evaluation"
    monkeypatch.setattr(upscaler_module, "make_super_resolve", make_nothing)
    assert evaluate(config, workdir)["images"] == results["images"]
    (out / "images" / "b" / "x.png").unlink()
    times = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    with (out / "rows.jsonl").open("a") as rows:
        rows.write('{"name": "b/x", "psn')  # as a kill leaves it
    with pytest.raises(AssertionError, match="something to do"):
        evaluate(config, workdir)
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upscaler_module, "make_super_resolve", make_noisy_resize)
        again = evaluate(config, workdir)
    assert again["images"] == results["images"] and again["means"] == results["means"]
    assert again["timing"]["images"] == 1
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


@pytest.fixture
def done_before(workdir, results, tmp_path) -> Path:
    """A workdir with the evaluation done, to be spoiled."""
    shutil.copytree(workdir, tmp_path / "run")
    return tmp_path / "run"


def test_rows_spoiled_anywhere_are_done_again(config, results, done_before):
    file = done_before / "evaluation" / "rows.jsonl"
    first, second, third = file.read_text().splitlines()
    file.write_text(f"{first}\n{second[:40]}{third}\n\0\0\0")
    again = evaluate(config, done_before)
    assert again["images"] == results["images"]
    assert again["timing"]["images"] == 2


@pytest.mark.parametrize("folder", ["images", "uncertainty"])
@pytest.mark.parametrize("damage", ["cut", "of another size", "none"])
def test_a_damaged_result_is_done_again(config, results, done_before, folder, damage):
    file = done_before / "evaluation" / folder / "large.png"
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-4])
    elif damage == "none":
        file.unlink()
    else:
        save(file)
    again = evaluate(config, done_before)
    assert (again["images"], again["timing"]["images"]) == (results["images"], 1)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda row: 3,
        lambda row: [row],
        lambda row: {"name": row["name"]},
        lambda row: {**row, "name": 3},
        lambda row: {**row, "psnr_y": "3"},
        lambda row: {**row, "lr": 3},
        lambda row: {**row, "bytes": 3},
        lambda row: {"name": row["name"], "broken": 3},
    ],
)
def test_rows_of_another_kind_are_done_again(config, results, done_before, change):
    file = done_before / "evaluation" / "rows.jsonl"
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(change(json.loads(first))), *others, ""]))
    again = evaluate(config, done_before)
    assert (again["images"], again["timing"]["images"]) == (results["images"], 1)


@pytest.mark.parametrize("forged", [[1, 2], {"timing": 3}, {"timing": {"seconds": 1.0}}])
def test_results_of_another_kind_are_written_anew(config, results, done_before, forged):
    file = done_before / "evaluation" / "results.json"
    if isinstance(forged, dict):
        forged = json.loads(file.read_text()) | forged
    file.write_text(json.dumps(forged))
    again = evaluate(config, done_before)
    assert again["images"] == results["images"]
    assert json.loads(file.read_text()) == again


def test_a_changed_image_is_done_again(config, tmp_path):
    """A low-resolution image and, of another pair, the ground truth."""
    folders = {kind: tmp_path / kind for kind in ("gt", "lq")}
    for kind, folder in folders.items():
        shutil.copytree(Path(config.eval.gt).with_name(kind), folder)
    config = changed(config, eval__gt=str(folders["gt"]), eval__lr=str(folders["lq"]))
    before = evaluate(config, tmp_path)["images"]
    for kind, image in (("lq", "b/x.png"), ("gt", "large.png")):
        write_image(folders[kind] / image, 255 - read(folders[kind] / image), overwrite=True)
    results = evaluate(config, tmp_path)
    assert results["timing"]["images"] == 2
    after = results["images"]
    assert after["a/x"] == before["a/x"]
    for name in ("b/x", "large"):
        assert abs(after[name]["psnr_y"] - before[name]["psnr_y"]) > 1
    assert evaluate(config, tmp_path) == results


def test_a_folder_in_use_is_left_alone(config, done_before):
    out = done_before / "evaluation"
    (out / "images" / ".upsr-0.part").touch()  # which the other evaluation is about to rename
    with (out / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process is writing to .*evaluation"):
            evaluate(config, done_before)
        assert (out / "images" / ".upsr-0.part").exists()
    evaluate(config, done_before)
    assert not (out / "images" / ".upsr-0.part").exists()


def test_damaged_options_are_named(config, done_before):
    options = done_before / "evaluation" / "options.json"
    for damaged in ("", "[1, 2]", "[" * 100_000):
        options.write_text(damaged)
        with pytest.raises(ValueError, match=f"{options} is damaged: remove"):
            evaluate(config, done_before)


@pytest.mark.parametrize(
    ("images", "out"),
    [
        ("lq", "lq/results"),
        ("lq", "lq"),
        ("work/images", "work"),
        ("work/images/lq", "work"),
        ("work/uncertainty", "work"),
        ("link", "work"),
    ],
)
def test_results_among_the_images_are_refused(config, tmp_path, images, out):
    (tmp_path / "link").symlink_to("work/images")
    images = tmp_path / images
    shutil.copytree(config.eval.lr, images.resolve())
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    with pytest.raises(ValueError, match=r"results would go to .*, among the images to evaluate"):
        evaluate_folders(config.eval.model, images, None, tmp_path / out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == {
        path.resolve(): data for path, data in before.items()
    }


def test_other_options_are_refused(config, workdir, results):
    rows = (workdir / "evaluation" / "rows.jsonl").read_text()
    with pytest.raises(ValueError, match="was begun with seed = 3, and this would be 4: give"):
        evaluate(changed(config, eval__seed=4), workdir)
    assert (workdir / "evaluation" / "rows.jsonl").read_text() == rows


def test_broken_images_are_listed_and_tried_again(config, tmp_path, capsys):
    for i, name in enumerate("abc"):
        write_pair(tmp_path, name, i, 16, 16)
    broken = tmp_path / "lq" / "b.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    config = changed(config, eval__gt=str(tmp_path / "gt"), eval__lr=str(tmp_path / "lq"))
    results = evaluate(config, tmp_path)
    assert list(results["images"]) == ["a", "c"] and list(results["broken"]) == ["b"]
    assert "b.png: damaged or cut short" in results["broken"]["b"]
    assert (results["protocol"]["images"], results["protocol"]["broken images"]) == (2, 1)
    assert results["means"]["psnr_y"]["images"] == 2
    assert "b is broken: " in capsys.readouterr().err
    assert results["timing"]["images"] == 2
    broken.write_bytes(whole)
    results = evaluate(config, tmp_path)
    assert list(results["images"]) == ["a", "b", "c"] and not results["broken"]
    assert results["timing"]["images"] == 1
