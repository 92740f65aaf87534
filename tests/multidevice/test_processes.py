"""Processes that meet, miss each other and are lost: each test runs real ones."""

import signal
import sys
import time

import pytest
from launch import free_port, launch, running

# A run in small: collectives over all devices, one after the other.
PROGRAM = """
import argparse, signal, sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from upsr_jax.cluster import join

parser = argparse.ArgumentParser()
parser.add_argument("--coordinator")
parser.add_argument("--processes", type=int)
parser.add_argument("--process_id", type=int)
parser.add_argument("--timeout", type=int, default=60)
parser.add_argument("--steps", type=int, default=10**6)
parser.add_argument("--handle", action="store_true")
args = parser.parse_args()
print("started")
try:
    join.initialize(args.coordinator, args.processes, args.process_id, args.timeout)
    if args.handle:
        signal.signal(signal.SIGTERM, lambda *_: print("handled SIGTERM"))
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    rows = np.full(jax.local_device_count(), 10.0**jax.process_index(), np.float32)
    ids = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")), rows)
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    for step in range(args.steps):
        value = float(total(ids))
        if step == 1:
            print("total", value)
        time.sleep(0.01)
except Exception as error:
    join.leave(f"program: {join.explain(error) or error}")
"""
COMMAND = [sys.executable, "-c", PROGRAM]
LOST = "The last checkpoint is whole"


def test_two_processes_agree_on_a_sum():
    first, second = launch([*COMMAND, "--steps", "3"], processes=2, devices=2)
    assert "total 22.0" in first.stdout and "total 22.0" in second.stdout
    assert LOST not in first.stderr + second.stderr


def test_a_process_alone_waits_for_no_other():
    (only,) = launch([*COMMAND, "--steps", "3"], devices=4)
    assert "total 4.0" in only.stdout


def test_a_missing_host_is_named_within_the_time():
    program = [*COMMAND, "--coordinator", f"localhost:{free_port()}", "--processes", "3"]
    with running([*program, "--process_id", "2"]) as [third]:
        third.wait_for("started")
        with running([*program, "--process_id", "0", "--timeout", "3"]) as [first]:
            first.wait_for("started")
            start = time.monotonic()
            for ended in (first.wait(20), third.wait(20)):
                assert ended.returncode == 1
                assert "did not come" in ended.stderr and "within 3 s: 1;" in ended.stderr
                assert "Traceback" not in ended.stderr
            assert time.monotonic() - start < 10


def test_an_absent_coordinator_is_named_within_the_time():
    flags = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process_id", "1"]
    (ended,) = launch([*COMMAND, *flags, "--timeout", "2"], check=False, timeout=30)
    assert ended.returncode == 1
    assert "process 0 did not answer process 1" in ended.stderr
    assert "refused" in ended.stderr and "Traceback" not in ended.stderr


# JAX's own handler of SIGTERM, if it were on, would ignore it.
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_others_of_a_killed_process_end_and_say_so(number):
    with running(COMMAND, processes=2) as processes:
        for process in processes:
            process.wait_for("total")
        processes[1].popen.send_signal(number)
        assert processes[1].wait(20).returncode == -number
        processes[1].wait_for("process 1 of 2 did not end by itself")
        survivor = processes[0].wait(20)
        assert survivor.returncode == 1
        assert "another process of the run was lost" in survivor.stderr
        assert LOST in survivor.stderr and "same command" in survivor.stderr


def test_the_others_of_a_killed_coordinator_end_and_say_so():
    with running(COMMAND, processes=2) as processes:
        for process in processes:
            process.wait_for("total")
        processes[0].popen.kill()
        # JAX's runtime aborts it, or Python sees the failed sum first.
        assert processes[1].wait(20).returncode in (1, -signal.SIGABRT)
        processes[1].wait_for(LOST)


def test_sigterm_reaches_the_handler_of_the_program_alone():
    with running([*COMMAND, "--handle"], processes=2) as processes:
        for process in processes:
            process.wait_for("total")
        processes[1].popen.terminate()
        processes[1].wait_for("handled SIGTERM")
        time.sleep(1)
        assert processes[0].popen.poll() is None and processes[1].popen.poll() is None
        assert "SIGTERM" not in processes[0].stdout + processes[0].stderr
