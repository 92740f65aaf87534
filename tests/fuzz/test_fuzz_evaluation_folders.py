"""A damaged evaluation folder is read, or refused in one sentence, or done again in part.

More of them: UPSR_MUTANTS=10000 pytest tests/fuzz/test_fuzz_evaluation_folders.py.
"""

import copy
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_folder import write_evaluation
from mutants import mutate

from upsr_jax.data.test_sets import Entry, hash_files
from upsr_jax.evaluation import folder
from upsr_jax.evaluation.pyiqa_scores import with_scores
from upsr_jax.evaluation.report import compare, write_report
from upsr_jax.evaluation.report.results import read_results
from upsr_jax.evaluation.run import means_table, summarize
from upsr_jax.evaluation.timing import Timing, timing_lines

MUTANTS = int(os.environ.get("UPSR_MUTANTS", 100))
METRICS = ["psnr_y", "lpips_vgg"]
NAMES = ["a", "b/c"]
SETTINGS = {"seed": 3, "gt": "gt", "metrics": {name: "version 1" for name in METRICS}}
OTHERS = (None, True, -1, 0, 2**70, 1e308, float("nan"), float("inf"), "", "x\x1b", [], [1, 2], {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished evaluation, of two images."""
    out = tmp_path_factory.mktemp("whole")
    values = {"psnr_y": 30.0, "bicubic_psnr_y": 28.0, "lpips_vgg": 0.125, "bicubic_lpips_vgg": 0.25}
    write_evaluation(
        out, {name: {k: x + i for k, x in values.items()} for i, name in enumerate(NAMES)}
    )
    results = json.loads((out / "results.json").read_text())
    results["timing"] |= {"images": 2} | Timing().summary()
    rows = ""
    for entry in entries_of(out):
        row = results["images"][entry.name]
        row |= {"sha256": hash_files(entry), "bytes": folder.count_bytes(out, entry.name)}
        rows += json.dumps({"name": entry.name, **row}) + "\n"
    scored = {
        name: {"value": 3.0, "sha256": row["sha256"]} for name, row in results["images"].items()
    }
    scores = {
        "musiq": {"version": "1", "higher_is_better": True, "compares": False, "values": scored}
    }
    for name, value in (("results", results), ("scores", scores), ("options", SETTINGS)):
        (out / f"{name}.json").write_text(json.dumps(value))
    (out / "rows.jsonl").write_text(rows)
    return out


def entries_of(out: Path) -> list[Entry]:
    return [Entry(name, *(f"{out}/{kind}/{name}.png" for kind in ("lr", "gt"))) for name in NAMES]


def of_another_kind(value: Any, draw: random.Random) -> Any:
    """Put another value, or none, in some place of a tree."""
    value = copy.deepcopy(value)
    place = value
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not (isinstance(place[key], dict | list) and place[key]) or draw.random() < 0.3:
            break
        place = place[key]
    if draw.random() < 0.2:
        del place[key]
    else:
        place[key] = copy.deepcopy(draw.choice(OTHERS))
    return value


def damage(file: Path, draw: random.Random) -> None:
    """Damage a file's bytes or, of JSON, as often its values."""
    data = file.read_bytes()
    if file.suffix == ".json" and draw.random() < 0.5:
        data = json.dumps(of_another_kind(json.loads(data), draw)).encode()
    elif file.suffix == ".jsonl" and draw.random() < 0.5:
        rows = [json.loads(line) for line in data.splitlines()]
        data = b"".join(json.dumps(row).encode() + b"\n" for row in of_another_kind(rows, draw))
    else:
        data = mutate(data, np.random.default_rng(draw.getrandbits(32)))
    file.write_bytes(data)


def go_through(out: Path, whole: Path) -> None:
    """Do what reads an evaluation's folder, but for the networks."""
    entries = entries_of(out)
    with folder.opened(out, SETTINGS, entries):
        rows = folder.read_rows(out)
        rows = {entry.name: rows[entry.name] for entry in entries if entry.name in rows}
        for name, row in rows.items():
            assert row["bytes"] == folder.count_bytes(out, name)
        done = with_scores(summarize({}, METRICS, rows), out)
        assert json.loads(json.dumps(done)) == done
        means_table(done)
        if timing := folder.read_timing(out):
            timing_lines(timing)


def report(out: Path, whole: Path) -> None:
    """Report a folder, and compare it with a whole one."""
    write_report(out)
    results = with_scores(read_results(out), out)
    for text in (
        means_table(results),
        compare([whole, out], out),
        (out / "results.md").read_text("utf-8"),
        (out / "report.html").read_text("utf-8").partition("<body>")[2].partition("<script>")[0],
    ):
        assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("use", "kind"),
    [
        *((go_through, "*.json"), (go_through, "*.jsonl"), (go_through, "*/**/*.png")),
        *((report, "*.json"), (report, "*/**/*.png")),
    ],
)
def test_a_damaged_folder_is_used_or_refused_in_one_sentence(tmp_path, whole, use, kind):
    ended = {"used": 0, "refused": 0}
    for seed in range(MUTANTS // 5):
        draw, out = random.Random(seed), tmp_path / "out"
        shutil.copytree(whole, out)
        file = draw.choice(sorted(out.glob(kind)))
        damage(file, draw)
        try:
            use(out, whole)
            ended["used"] += 1
        except (ValueError, OSError) as error:
            assert str(out) in str(error) and "\n" not in str(error), (seed, file, error)
            assert type(error) is ValueError, (seed, file, error)
            ended["refused"] += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, {file}")
            raise
        shutil.rmtree(out)
    assert ended["used"]
