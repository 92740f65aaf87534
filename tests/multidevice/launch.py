"""Start real processes of one program, with simulated devices, and end all that they started."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent


class Completed(NamedTuple):
    """A process that has ended, by itself or with `returncode` -SIGNAL."""

    returncode: int
    stdout: str
    stderr: str


class Running(NamedTuple):
    """A process that runs; its output goes to files, so that it never waits for a reader."""

    popen: subprocess.Popen
    command: Sequence[str]
    stdout_path: Path
    stderr_path: Path

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def wait(self, timeout: float) -> Completed:
        """Wait for its end; AssertionError with its output if that does not come in time."""
        try:
            returncode = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:.0f} s\n{self.report()}") from None
        return Completed(returncode, self.stdout, self.stderr)

    def wait_for(self, text: str, timeout: float = 200) -> None:
        """Wait until it has written `text`; AssertionError with its output if it does not."""
        deadline = time.monotonic() + timeout
        while text not in self.stdout + self.stderr:
            assert time.monotonic() < deadline, f"{text!r} was not written\n{self.report()}"
            if self.popen.poll() is not None:  # only what it started may still write
                deadline = min(deadline, time.monotonic() + 5)
            time.sleep(0.05)

    def report(self) -> str:
        command = " ".join(map(str, self.command))[-200:]
        ends = f"--- stdout\n{self.stdout[-3000:]}\n--- stderr\n{self.stderr[-6000:]}"
        return f"returncode {self.popen.poll()} of ...{command}\n{ends}"


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """Let what is started hear SIGINT, which shells make their background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def running(
    command: Sequence[str],
    processes: int = 1,
    devices: int = 1,
    env: Mapping[str, str] | None = None,
) -> Iterator[list[Running]]:
    """Run `command` in `processes` processes of `devices` simulated CPU devices each.

    Several processes get the flags --coordinator, --processes and --process_id. `env` adds to the
    environment. On leaving, every process and what it started is killed.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "PYTHONUNBUFFERED": "1",
    }
    environment |= env or {}
    coordinator = f"localhost:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        started: list[Running] = []
        try:
            for process_id in range(processes):
                flags = ["--coordinator", coordinator, "--processes", str(processes)]
                flags += ["--process_id", str(process_id)]
                arguments = [*command, *(flags if processes > 1 else [])]
                stdout, stderr = (Path(folder) / f"{name}{process_id}" for name in ("out", "err"))
                with stdout.open("wb") as out, stderr.open("wb") as err, heard_interrupts():
                    popen = subprocess.Popen(
                        arguments,
                        cwd=ROOT,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,  # a group of its own, which is killed as a whole
                    )
                started.append(Running(popen, arguments, stdout, stderr))
            yield started
        finally:
            for process in started:
                kill_group(process)


def kill_group(process: Running) -> None:
    """Kill a process and all that it started."""
    with suppress(ProcessLookupError):  # nothing may be left of it
        os.killpg(process.popen.pid, signal.SIGKILL)
    process.popen.wait()


def launch(
    command: Sequence[str],
    processes: int = 1,
    devices: int = 1,
    timeout: float = 400,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> list[Completed]:
    """Run `command` as `running` does and wait for the end of all its processes.

    Raises AssertionError, with the output, if one is not over within `timeout` seconds or, with
    `check`, if one does not exit with 0.
    """
    deadline = time.monotonic() + timeout
    with running(command, processes, devices, env) as started:
        completed = [p.wait(max(deadline - time.monotonic(), 0)) for p in started]
        failed = [p.report() for p in started if p.popen.returncode != 0]
        assert not (check and failed), "\n".join(failed)
    return completed
