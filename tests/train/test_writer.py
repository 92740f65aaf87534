"""Metrics of a run go on where its checkpoint was, and those of an earlier run are not lost."""

import json
import sys
import time
from contextlib import closing, suppress

import numpy as np
import pytest
import wandb
from tiny_model import changed
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

from configs import tiny
from upsr_jax.train.writer import Writer

OFFLINE = changed(tiny.get_config(), wandb__mode="offline", wandb__project="tests")


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


def records_of(file):
    """Read a run's records when its end is among them: a process of wandb's writes for a while."""
    for _ in range(300):
        records, store = [], DataStore()
        store.open_for_scan(str(file))
        with suppress(AssertionError):  # in the middle of a record
            for data in iter(store.scan_data, None):
                records.append(wandb_internal_pb2.Record.FromString(data))  # pyright: ignore
        store.close()
        if records and records[-1].HasField("exit"):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"no end of the run in {file}")


def read_wandb(workdir):
    """Read what wandb has kept to be sent: the runs' ids and names, and their rows."""
    ids, rows = set(), []
    for file in sorted((workdir / "wandb").glob("offline-run-*/*.wandb")):
        for record in records_of(file):
            if record.HasField("run"):
                ids.add((record.run.run_id, record.run.project, record.run.display_name))
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                )
    return ids, rows


def test_wandb_offline_keeps_numbers_and_pictures_and_goes_on_with_its_id(tmp_path):
    picture = np.full((4, 6, 3), 99, np.uint8)
    with closing(Writer(tmp_path, 0, True, OFFLINE)) as writer:
        writer.scalars(1, "train", {"loss": 0.5})
        writer.scalars(2, "realsr", {"psnr_y": 24.5})
        writer.picture(2, "realsr", picture)
    with closing(Writer(tmp_path, 2, True, OFFLINE)) as writer:
        writer.scalars(3, "train", {"loss": 0.25})
    ids, rows = read_wandb(tmp_path)
    kept = (tmp_path / "wandb" / "id").read_text()
    assert ids == {(kept, "tests", tmp_path.name)}
    named = [
        {key: row.get(key) for key in ("_step", "train/loss", "realsr/psnr_y")} for row in rows
    ]
    assert [tuple(row.values()) for row in named] == [
        (1, 0.5, None),
        (2, None, 24.5),
        (3, 0.25, None),
    ]
    assert [row["pictures/realsr/width"] for row in rows if "pictures/realsr/width" in row] == [6]
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]
    with closing(Writer(tmp_path, 0, False, OFFLINE)) as writer:  # of another process
        writer.scalars(1, "train", {"loss": 0.5})
    assert (tmp_path / "wandb" / "id").read_text() == kept
    with closing(Writer(tmp_path, 0, True, OFFLINE)):  # of another run in this folder
        assert (tmp_path / "wandb" / "id").read_text() != kept


def test_a_run_goes_on_when_wandb_fails(tmp_path, monkeypatch, caplog):
    class Run:
        def log(self, values, step):
            raise OSError("no route to host")

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    with closing(Writer(tmp_path, 0, True, OFFLINE)) as writer:
        writer.scalars(1, "train", {"loss": 0.5})
        writer.scalars(2, "train", {"loss": 0.5})
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2]
    assert caplog.messages == ["wandb failed, the run goes on without it: no route to host"]


def test_without_wandb_or_a_login_a_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(
        ValueError, match=r"^wandb can't start \(.*: log in by `wandb login`, or set"
    ):
        Writer(tmp_path, 0, True, changed(OFFLINE, wandb__mode="online"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ImportError, match=r"is 'offline', but wandb can't be imported .* pip install"
    ):
        Writer(tmp_path, 0, True, OFFLINE)
    assert not (tmp_path / "metrics.jsonl").exists()
