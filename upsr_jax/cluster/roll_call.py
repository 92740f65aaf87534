"""Bring the processes of a run together before JAX does, which names no missing one."""

import contextlib
import re
import socket
import time
from typing import NamedTuple

SAYS = "upsr_jax says "  # begins every answer of process 0, and of no other server
GO = "go"


class Settings(NamedTuple):
    """Who and where the processes of a run are."""

    coordinator: str  # HOST:PORT of process 0
    process_count: int
    process_id: int
    local_device_ids: list[int] | None = None  # None: all that the process sees
    plan: str = "any"  # a digest of what all have to agree on


def roll_call(settings: Settings, timeout: int) -> None:
    """Wait until every process of the run has come to the coordinator's address.

    JAX waits for them as well, but it aborts when one is missing and does not say which.

    Raises:
      ValueError: two processes contradict each other (on process 0).
      OSError: the coordinator's port can't be used (on process 0).
      TimeoutError: not every process came within `timeout` seconds, or process 0 never answered.
      ConnectionError: process 0 gave up, for the reason it sent.
    """
    if settings.process_id == 0:
        _await_others(settings, timeout)
    else:
        _report_to_coordinator(settings, timeout)


def _await_others(settings: Settings, timeout: int) -> None:
    """Await all other processes and answer each GO, or else the sentence that is raised here."""
    deadline = time.monotonic() + timeout
    waiting: dict[int, socket.socket] = {}
    answer = "process 0 was ended before all processes had come"
    try:
        with _listen(settings) as server:
            while len(waiting) < settings.process_count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                _admit(server.accept()[0], waiting, settings)
    except TimeoutError:
        missing = sorted(set(range(1, settings.process_count)) - set(waiting))
        answer = (
            f"of {settings.process_count} processes these did not come to {settings.coordinator} "
            f"within {timeout} s: {', '.join(map(str, missing))}; see on their hosts whether "
            "they run, with the same --coordinator and --processes, and can reach that port"
        )
        raise TimeoutError(answer) from None
    except ValueError as contradiction:
        answer = str(contradiction)
        raise
    else:
        answer = GO
    finally:
        for connection in waiting.values():
            _answer(connection, answer)


def _listen(settings: Settings) -> socket.socket:
    """Open the coordinator's port on all addresses of this host."""
    port = int(settings.coordinator.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        raise OSError(
            f"port {port} of --coordinator {settings.coordinator} can't be used ({error}): "
            "choose another, the same for all processes"
        ) from None


def _admit(
    connection: socket.socket, waiting: dict[int, socket.socket], settings: Settings
) -> None:
    """Put the process that has connected with those that wait; drop what is no process of ours."""
    connection.settimeout(5)
    try:
        line = connection.makefile(errors="replace").readline(200)
    except OSError:
        line = ""
    match = re.fullmatch(r"upsr_jax process (\d+) of (\d+), plan (\w+)\n", line)
    if match is None:
        connection.close()
        return
    process_id, process_count, plan = int(match[1]), int(match[2]), match[3]
    contradiction = None
    if process_count != settings.process_count:
        contradiction = (
            f"process {process_id} was started with --processes {process_count}, process 0 with "
            f"{settings.process_count}: start all with the same number"
        )
    elif process_id == 0 or process_id in waiting:
        contradiction = (
            f"two processes came as process {process_id}: start each with its own --process_id, "
            f"from 0 to {settings.process_count - 1}"
        )
    elif plan != settings.plan:
        contradiction = (
            f"process {process_id} has other options or sees other files than process 0: start all "
            "with the same command, on a folder that they share"
        )
    if contradiction:
        _answer(connection, contradiction)
        raise ValueError(contradiction)
    waiting[process_id] = connection


def _answer(connection: socket.socket, answer: str) -> None:
    with connection, contextlib.suppress(OSError):  # a process that is gone misses it
        connection.sendall(f"{SAYS}{answer}\n".encode())
        connection.recv(1)  # it closes first, so that the port is free at once


def _report_to_coordinator(settings: Settings, timeout: int) -> None:
    """Tell process 0 that this one is there, as soon as it listens, and await its answer."""
    host, _, port = settings.coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    trouble = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            address = (host.strip("[]"), int(port))
            with socket.create_connection(address, timeout=min(left, 10)) as connection:
                who = f"process {settings.process_id} of {settings.process_count}"
                connection.sendall(f"upsr_jax {who}, plan {settings.plan}\n".encode())
                connection.settimeout(left + 5)  # process 0 knows best who is missing
                answer = connection.makefile(errors="replace").readline(1000)
            trouble = "it, or what else is there, hung up or speaks another language"
        except (OSError, OverflowError) as error:
            answer, trouble = "", str(error)
        if answer == f"{SAYS}{GO}\n":
            return
        if answer.startswith(SAYS):
            raise ConnectionError(answer.removeprefix(SAYS).strip())
        time.sleep(0.5)
    raise TimeoutError(
        f"process 0 did not answer process {settings.process_id} at {settings.coordinator} within "
        f"{timeout} s ({trouble}): see whether it runs on that host, with the same "
        "--coordinator, and that port can be reached from here"
    )
