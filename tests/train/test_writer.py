"""Metrics of a run go on where its checkpoint was, and those of an earlier run are not lost."""

import json
from contextlib import closing

from upsr_jax.train.writer import Writer


def write(workdir, first, steps):
    with closing(Writer(workdir, first, enabled=True)) as writer:
        for step in steps:
            writer.scalars(step, "train", {"loss": 0.5})


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_run_that_goes_on_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    write(tmp_path, 0, (1, 2, 3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')  # as a kill leaves it
    write(tmp_path, 2, (3, 4))
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


def test_a_run_that_begins_sets_the_lines_of_another_aside(tmp_path):
    write(tmp_path, 0, (1, 2, 3))
    write(tmp_path, 0, (1,))
    assert steps_in(tmp_path / "metrics.jsonl") == [1]
    (aside,) = tmp_path.glob("metrics_*.jsonl")
    assert steps_in(aside) == [1, 2, 3]
