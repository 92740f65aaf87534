"""Settings and roll call; tests/multidevice/test_processes.py runs real processes."""

import contextlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from upsr_jax.cluster import join
from upsr_jax.cluster.join import read_settings
from upsr_jax.cluster.roll_call import Settings, roll_call

SLURM = {
    "SLURM_JOB_ID": "8195",
    "SLURM_STEP_NODELIST": "node[07-09,12]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_nothing_given_is_a_single_process():
    assert read_settings(None, None, None, {}) is None
    assert read_settings(None, None, None, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_given_settings_and_the_variable_of_jax():
    expected = Settings("node01:8476", 2, 1)
    assert read_settings("node01:8476", 2, 1, {}) == expected
    assert read_settings(None, 2, 1, {"JAX_COORDINATOR_ADDRESS": "node01:8476"}) == expected
    assert read_settings("[fe80::1]:8476", 2, 0, {}) == Settings("[fe80::1]:8476", 2, 0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[07-09,12]", "node07"),
        ("node[07,12-13],login1", "node07"),
        ("gpu-a", "gpu-a"),
        ("gpu-a,gpu-b", "gpu-a"),
    ],
)
def test_slurm_names_its_first_node_and_a_port_by_the_job(nodes, first):
    settings = read_settings(None, None, None, SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert settings == Settings(f"{first}:{61440 + 3}", 4, 2, None)


def test_slurm_tasks_that_share_a_node_take_one_device_each():
    shared = SLURM | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
    settings = read_settings(None, None, None, shared)
    assert settings is not None and settings.local_device_ids == [1]


def test_given_settings_come_before_those_of_slurm():
    settings = read_settings("other:1234", None, None, SLURM)
    assert settings == Settings("other:1234", 4, 2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("node01:8476", None, None), "needs --processes and --process_id too"),
        ((None, 2, 0), "needs --coordinator too"),
        (("node01", 2, 0), "'node01' is not HOST:PORT"),
        (("node01:", 2, 0), "is not HOST:PORT"),
        (("http://node01:80", 2, 0), "is not HOST:PORT"),
        (("fe80::1:8476", 2, 0), "is not HOST:PORT"),
        (("node01:8476", 2, 2), "process 2 is none of 2 processes"),
        (("node01:8476", 2, -1), "process -1 is none of 2 processes"),
    ],
)
def test_wrong_settings_end_in_one_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_settings(*given, environment={})


def test_an_unreadable_slurm_node_list_asks_for_the_coordinator():
    nodes = {"SLURM_STEP_NODELIST": "rack[1-2]n[1-4]"}
    with pytest.raises(ValueError, match=r"rack.*--coordinator"):
        read_settings(None, None, None, SLURM | nodes)
    settings = read_settings("rack1n1:8476", None, None, SLURM | nodes)
    assert settings == Settings("rack1n1:8476", 4, 2)


def address() -> str:
    with socket.create_server(("", 0)) as server:
        return f"localhost:{server.getsockname()[1]}"


def call_together(*calls: Settings, timeout: int = 20) -> list[BaseException | None]:
    """Call the roll for several processes at once; what each raised."""
    with ThreadPoolExecutor(len(calls)) as threads:
        futures = [threads.submit(roll_call, settings, timeout) for settings in calls]
        return [future.exception() for future in futures]


def test_all_come_in_any_order_and_the_port_is_free_afterwards():
    coordinator = address()
    for order in ([0, 1, 2], [2, 1, 0]):
        assert call_together(*[Settings(coordinator, 3, i) for i in order]) == [None] * 3


def connect(coordinator: str) -> socket.socket:
    """Connect as soon as somebody listens."""
    host, port = coordinator.split(":")
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, int(port)))
        time.sleep(0.05)
    raise AssertionError(f"nobody listens at {coordinator}")


def test_a_stranger_at_the_port_is_no_process():
    coordinator = address()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(roll_call, Settings(coordinator, 2, 0), 20)
        stranger = connect(coordinator)
        with stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(10) == b""  # turned away
        assert not first.done()
        second = threads.submit(roll_call, Settings(coordinator, 2, 1), 20)
        assert first.result() is None and second.result() is None


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff\xfe\n", b""])
def test_another_server_at_the_port_is_not_process_0(reply):
    with socket.create_server(("localhost", 0)) as server, ThreadPoolExecutor(1) as threads:
        coordinator = f"localhost:{server.getsockname()[1]}"
        caller = threads.submit(roll_call, Settings(coordinator, 2, 1), 1)
        while not caller.done():
            server.settimeout(0.2)
            with contextlib.suppress(TimeoutError), server.accept()[0] as connection:
                connection.recv(100)  # unread bytes would turn the end into a reset
                connection.sendall(reply)
        error = caller.exception()
    assert isinstance(error, TimeoutError) and "speaks another language" in str(error)


def test_two_processes_of_the_same_number_are_told_so():
    coordinator = address()
    calls = [Settings(coordinator, 4, i) for i in (0, 1, 1)]
    first, *others = call_together(*calls)
    assert isinstance(first, ValueError) and "two processes came as process 1" in str(first)
    for other in others:
        assert isinstance(other, ConnectionError) and str(other) == str(first)


def test_processes_of_different_counts_are_told_so():
    coordinator = address()
    first, second = call_together(Settings(coordinator, 2, 0), Settings(coordinator, 4, 1))
    assert "--processes 4, process 0 with 2" in str(first)
    assert isinstance(second, ConnectionError) and str(second) == str(first)


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} .*in use.*choose another"):
            roll_call(Settings(f"localhost:{port}", 2, 0), 5)


def test_only_the_loss_of_a_process_is_explained_as_one(monkeypatch):
    gloo = ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore")
    assert join.explain(gloo) is None  # there is no other process
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    sentence = join.explain(gloo)
    assert sentence is not None and "more" not in sentence
    assert "Gloo all-reduce failed" in sentence and "same command" in sentence
    for reason in (
        "INTERNAL: NCCL operation ncclAllReduce(...) failed: remote error",
        "DEADLINE_EXCEEDED: Barrier timed out. Id: x",
        "UNAVAILABLE: Task 1 heartbeat timeout.",
    ):
        assert join.explain(jax.errors.JaxRuntimeError(reason)) is not None
    assert join.explain(ValueError("crop_size 100 is no multiple of 64")) is None
    assert join.explain(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory")) is None


def test_no_thread_keeps_a_process_from_leaving():
    program = """
import threading
from upsr_jax.cluster import join
threading.Thread(target=threading.Event().wait).start()
join.leave("disk full", 130)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, b"disk full\n")
