"""Write metrics and pictures: to files and TensorBoard always, to Weights & Biases if asked to."""

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from upsr_jax.files.whole import naming_full_disk, whole_file, write_whole
from upsr_jax.train.config import config_as_json

logger = logging.getLogger(__name__)


class Output(NamedTuple):
    """One place to write to: named numbers of a step, a picture of a step, and the end."""

    scalars: Callable[[int, Mapping[str, float]], None]
    picture: Callable[[int, str, np.ndarray], None]
    close: Callable[[], None]


class Writer:
    """Write what process 0 measures to every output; on other processes every call does nothing.

    The run goes on after `step`, or begins if that is 0. What can't be written to `workdir` raises
    OSError; Weights & Biases, asked for by `config.wandb`, only warns once the run has begun.
    """

    def __init__(self, workdir: Path, step: int, enabled: bool, config: ConfigDict | None = None):
        self.enabled = enabled
        self.outputs: list[Output] = []
        if enabled and config and config.wandb.mode:
            self.outputs.append(open_wandb(workdir, step, config))
        if enabled:
            self.outputs += [open_files(workdir, step), open_tensorboard(workdir, step)]

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Write named numbers measured after `step` updates."""
        named = {f"{prefix}/{name}": float(value) for name, value in values.items()}
        for output in self.outputs:
            output.scalars(step, named)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture, uint8 [h, w, 3]."""
        for output in self.outputs:
            output.picture(step, name, picture)

    def close(self) -> None:
        """Write what is left, and close the files."""
        for output in self.outputs:
            output.close()


def open_files(workdir: Path, step: int) -> Output:
    """Write lines of `workdir/metrics.jsonl`, and pictures as `workdir/pictures/STEP_NAME.png`.

    A run that goes on after `step` continues the lines, without what a killed run wrote about later
    steps; one that begins, as all checkpoints may be gone, sets an earlier one's aside as
    metrics_SECONDS.jsonl, by its time.
    """
    path = workdir / "metrics.jsonl"
    if step == 0 and path.exists():
        path.replace(path.with_name(f"metrics_{int(path.stat().st_mtime)}.jsonl"))
    keep_lines(path, step)
    lines = path.open("a", buffering=1)

    def scalars(step: int, named: Mapping[str, float]) -> None:
        with naming_full_disk(path):
            lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **named}) + "\n")

    def picture(step: int, name: str, picture: np.ndarray) -> None:
        file = workdir / "pictures" / f"{step:07d}_{name}.png"
        with naming_full_disk(file):
            file.parent.mkdir(exist_ok=True)
        with whole_file(file) as opened:
            Image.fromarray(picture).save(opened, "PNG")

    def close() -> None:
        with naming_full_disk(path):
            lines.close()

    return Output(scalars, picture, close)


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, and one that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        with suppress(ValueError, KeyError, TypeError):  # cut off or damaged
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
    write_whole(path, "".join(kept).encode())


def open_tensorboard(workdir: Path, step: int) -> Output:
    """Write events to `workdir/tensorboard`, which drop what a killed run wrote after `step`."""
    folder = workdir / "tensorboard"
    with naming_full_disk(folder):
        folder.mkdir(exist_ok=True)
        # Without SummaryWriter's thread: once dead, it would let the run wait for ever.
        events = EventsWriter(str(folder / "events"))

    def add(step: int, **content: Any) -> None:
        with naming_full_disk(folder):
            events.write_event(Event(wall_time=time.time(), step=step, **content))

    def scalars(step: int, named: Mapping[str, float]) -> None:
        for name, value in named.items():
            add(step, summary=summary.scalar(name, value))
        with naming_full_disk(folder):
            events.flush()

    def picture(step: int, name: str, picture: np.ndarray) -> None:
        add(step, summary=summary.image(name, picture, dataformats="HWC"))

    def close() -> None:
        with naming_full_disk(folder):
            events.close()

    add(step + 1, session_log=SessionLog(status=SessionLog.START))  # which is what drops them
    return Output(scalars, picture, close)


def open_wandb(workdir: Path, step: int, config: ConfigDict) -> Output:
    """Write to Weights & Biases, or offline to `workdir/wandb`, under an id that is kept there.

    A run that begins (`step` 0) has a new id. Whatever fails after the start is told once in a
    warning, and nothing more is written there: training goes on.

    Raises:
      ImportError: wandb is not installed.
      ValueError: it doesn't know its user.
    """
    mode = config.wandb.mode
    if mode == "offline":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would go over the network
    try:
        import wandb
        from wandb.errors import AuthenticationError, UsageError
    except ImportError as error:
        raise ImportError(
            f"config.wandb.mode is {mode!r}, but wandb can't be imported ({error}): pip install "
            "'upsr_jax[wandb]', or set it to ''"
        ) from error
    kept = workdir / "wandb" / "id"
    if step == 0 or not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, secrets.token_hex(4).encode())
    run: Any = None

    def trying(function: Callable[..., Any]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            nonlocal run
            if run is None:
                return
            try:
                function(*arguments)
            except Exception as error:  # of a network, a server or wandb itself
                run = None
                logger.warning("wandb failed, the run goes on without it: %s", error)

        return call

    try:
        run = wandb.init(
            project=config.wandb.project,
            name=workdir.name,
            id=kept.read_text(),
            resume="allow" if mode == "online" else None,
            dir=workdir,
            mode=mode,
            config=config_as_json(config),
            allow_val_change=True,
            # It must not wait for a lost network; what is left can be sent by `wandb sync`.
            settings=wandb.Settings(console="off", silent=True, finish_timeout=60),
        )
    except (UsageError, AuthenticationError) as error:
        raise ValueError(
            f"wandb can't start ({error}): log in by `wandb login`, or set config.wandb.mode to "
            "'offline' or ''"
        ) from error
    except Exception as error:
        logger.warning("wandb failed, the run goes on without it: %s", error)
    return Output(
        trying(lambda step, named: run.log(dict(named), step=step)),
        trying(lambda step, name, image: run.log({f"pictures/{name}": wandb.Image(image)}, step)),
        trying(lambda: run.finish()),
    )
