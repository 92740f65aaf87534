"""Join the processes of a run over several hosts, and be clear when one is missing or lost."""

import atexit
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from upsr_jax.cluster.roll_call import Settings, roll_call

ADVICE = (
    "The last checkpoint is whole: see why the first process ended, and start all of them again "
    "with the same command."
)


def initialize(
    coordinator: str | None, process_count: int | None, process_id: int | None, timeout: int = 300
) -> None:
    """Join this process to the others of the run; a run of one process needs nothing.

    From then on the loss of one ends the others: at once where a broken connection shows it, else
    after the 100 s without a sign of life that JAX allows.

    The environment gives what the arguments leave out: JAX_COORDINATOR_ADDRESS, and the SLURM
    variables of a step of several tasks. Call it before JAX computes anything, and install signal
    handlers after it.

    Raises:
      ValueError: the settings are incomplete, malformed or contradict another process's.
      OSError: the coordinator's port can't be used.
      TimeoutError: not all processes came together within `timeout` seconds.
      ConnectionError: process 0 gave up for one of these reasons, which it names.
    """
    settings = read_settings(coordinator, process_count, process_id, os.environ)
    if settings is None or settings.process_count == 1:
        return
    roll_call(settings, timeout)
    _prepare_last_words(settings)
    # JAX would swallow SIGTERM until the trainer installs its own handler.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        settings.coordinator,
        settings.process_count,
        settings.process_id,
        settings.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
    )


def read_settings(
    coordinator: str | None,
    process_count: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Settings | None:
    """Complete the given settings from the environment and check them; None: a single process."""
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    slurm = _slurm_settings(environment, coordinator)
    if slurm is not None:
        coordinator = slurm.coordinator
        process_count = slurm.process_count if process_count is None else process_count
        process_id = slurm.process_id if process_id is None else process_id
    if coordinator is None and process_count is None and process_id is None:
        return None
    if coordinator is None or process_count is None or process_id is None:
        given = {
            "--coordinator": coordinator,
            "--processes": process_count,
            "--process_id": process_id,
        }
        missing = " and ".join(name for name, value in given.items() if value is None)
        raise ValueError(
            f"a run of several processes needs {missing} too: give each the same --coordinator "
            "HOST:PORT of process 0 and --processes N, and its own --process_id from 0 to N - 1"
        )
    if not re.fullmatch(r"([^\s:/\[\]]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", coordinator):
        raise ValueError(
            f"the coordinator's address {coordinator!r} is not HOST:PORT, such as node01:8476"
        )
    if not 0 <= process_id < process_count:
        raise ValueError(
            f"process {process_id} is none of {process_count} processes: --process_id counts "
            f"from 0 and stays below --processes"
        )
    return Settings(
        coordinator, process_count, process_id, slurm.local_device_ids if slurm else None
    )


def _slurm_settings(environment: Mapping[str, str], coordinator: str | None) -> Settings | None:
    """Read the settings of an srun step of several tasks; None outside of one."""
    count = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if count == 1:
        return None
    # Tasks on one node share its devices: one each, as JAX has it for SLURM.
    sharing = count > int(environment["SLURM_STEP_NUM_NODES"])
    return Settings(
        coordinator or _slurm_coordinator(environment),
        count,
        int(environment["SLURM_PROCID"]),
        [int(environment["SLURM_LOCALID"])] if sharing else None,
    )


def _slurm_coordinator(environment: Mapping[str, str]) -> str:
    """Choose a port of the step's first node; ValueError if its name can't be read."""
    # The first of "node[07-09,12],login1" is node07.
    nodes = environment["SLURM_STEP_NODELIST"]
    first = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?(?:,|$)", nodes)
    if first is None:
        raise ValueError(
            f"SLURM_STEP_NODELIST is {nodes!r}, which hides the first host's name: give it as "
            "--coordinator HOST:PORT (`scontrol show hostnames` lists them)"
        )
    port = 61440 + int(environment["SLURM_JOB_ID"]) % 4096  # two jobs on a node seldom meet
    return "".join(first.groups("")) + f":{port}"


_herald: subprocess.Popen | None = None


def _prepare_last_words(settings: Settings) -> None:
    """Have a small child print a sentence should this process be aborted.

    When another process is lost, JAX's runtime aborts this one from a C++ thread: no exception
    reaches Python, no handler runs. The child notices by the end of its input.
    """
    global _herald
    sentence = (
        f"upsr_jax: process {settings.process_id} of {settings.process_count} did not end by "
        f"itself; most likely another one was lost, or it was killed. {ADVICE}"
    )
    script = "trap '' INT TERM; read -r _ || echo \"$0\" >&2"
    _herald = subprocess.Popen(["sh", "-c", script, sentence], stdin=subprocess.PIPE, text=True)
    atexit.register(_leave_together)


def _leave_together() -> None:
    """Await the other processes at the end of the run; JAX's own exit hook comes too late."""
    jax.distributed.shutdown()
    _dismiss_herald()


def _dismiss_herald() -> None:
    if _herald is not None:
        _herald.communicate("\n")


def explain(error: BaseException) -> str | None:
    """Say in one sentence that another process was lost, if that is what `error` comes from.

    JAX has no type for it: gloo's failures are ValueErrors, NCCL's and barriers' JaxRuntimeErrors.
    """
    reason = str(error).partition("\n")[0]
    lost = (
        r"\bgloo\b|\bnccl|coordination service|heartbeat|barrier (failed|timed out)|socket closed"
    )
    if jax.distributed.is_initialized() and re.search(lost, reason, re.IGNORECASE):
        return f"another process of the run was lost ({reason}). {ADVICE}"
    return None


def leave(message: str, status: int = 1) -> NoReturn:
    """End this process with `message` and an exit status, at once and for sure.

    The normal exit awaits the other processes of a run, which await this one in their next
    collective, and threads, which a failed checkpoint of orbax leaves behind for ever.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    _dismiss_herald()
    os._exit(status)


def create_workdir(workdir: Path) -> None:
    """Make the folder on process 0, and see on all others that it is the same one.

    Raises OSError if that fails.
    """
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    path = workdir / f".token_{token}"
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.touch()
    multihost_utils.sync_global_devices("workdir")
    if not path.exists():
        raise FileNotFoundError(
            f"process {jax.process_index()} doesn't see {path}, which process 0 has written: "
            "choose a --workdir that all hosts share"
        )
    multihost_utils.sync_global_devices("workdir seen")
    if jax.process_index() == 0:
        path.unlink()
