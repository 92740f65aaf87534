"""Tests of what becomes of worker processes; those of their results are in test_pipeline.py."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path

import pytest

from upsr_jax.data.prefetch import map_ahead


def square(x: int) -> int:
    time.sleep(0.01 * (x % 3))
    return x * x


def process_of(x: int) -> int:
    time.sleep(0.02)  # so that no worker gets all
    return os.getpid()


def fail_at_7(x: int) -> int:
    if x == 7:
        raise ValueError("no 7 here")
    return x


def die_at_7(x: int) -> int:
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def lives(process: int) -> bool:
    """Tell whether a process runs; one that ended may still wait to be collected."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end(processes, seconds=20.0):
    end = time.monotonic() + seconds
    while any(map(lives, processes)):
        assert time.monotonic() < end, "processes are left over"
        time.sleep(0.05)


@pytest.mark.parametrize(("num_workers", "num_threads"), [(0, 0), (0, 1), (0, 3), (2, 0)])
def test_results_come_in_order(num_workers, num_threads):
    expected = [x * x for x in range(30)]
    assert list(map_ahead(square, range(30), num_workers, num_threads, ahead=8)) == expected
    with contextlib.closing(map_ahead(square, count(), num_workers, num_threads, 8)) as results:
        assert list(islice(results, 5)) == expected[:5]


def test_no_more_than_asked_for_is_begun():
    begun = []
    with contextlib.closing(map_ahead(begun.append, count(), 0, 2, ahead=5)) as results:
        for _ in range(10):
            next(results)
    assert len(begun) <= 10 + 5


def test_processes_end_with_the_generator():
    results = map_ahead(process_of, count(), 2, 0, ahead=8)
    processes = set(islice(results, 20))
    assert len(processes) == 2 and os.getpid() not in processes
    results.close()
    wait_for_end(processes, seconds=1)


@pytest.mark.parametrize(("num_workers", "num_threads"), [(0, 0), (0, 2), (1, 0)])
def test_errors_come_through(num_workers, num_threads):
    results = map_ahead(fail_at_7, range(20), num_workers, num_threads, ahead=4)
    assert list(islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="no 7 here"):
        next(results)


def test_a_killed_worker_is_an_error():
    results = map_ahead(die_at_7, range(20), 1, 0, ahead=1)
    assert list(islice(results, 7)) == list(range(7))
    with pytest.raises(ChildProcessError, match="One of 1 data workers was killed"):
        next(results)


PROGRAM = """
import itertools, os, signal, sys, time
from upsr_jax.data.prefetch import map_ahead
from test_prefetch import process_of

if __name__ == "__main__":
    results = map_ahead(process_of, itertools.count(), 2, 0, ahead=8)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    workers = set()
    while len(workers) < 2:  # one may start late
        workers.add(next(results))
    print(*workers, flush=True)
    sys.stdin.readline()
    print(*set(itertools.islice(results, 60)), flush=True)
    results.close()
"""


@pytest.fixture
def program(tmp_path):
    """Start PROGRAM in a process group of its own; return it and its two workers."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    root = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{root}:{root.parent}"},
        start_new_session=True,
    )
    with process:
        assert process.stdout
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        yield process, workers
        process.kill()


def test_no_worker_outlives_a_killed_trainer(program):
    process, workers = program
    process.kill()
    wait_for_end(workers)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_go_on_when_a_signal_goes_to_all_processes_of_a_job(program, number):
    process, workers = program
    os.killpg(process.pid, number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert {int(word) for word in process.stdout.readline().split()} == set(workers)
    assert process.wait(timeout=10) == 0
    wait_for_end(workers)


def test_workers_import_neither_jax_nor_grain():
    code = """
import sys
import upsr_jax.data.examples, upsr_jax.data.prefetch
print([name for name in ("jax", "flax", "grain", "ml_collections") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
