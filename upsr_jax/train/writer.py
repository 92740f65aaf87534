"""Write metrics to JSON lines and TensorBoard, and pictures to both a folder and TensorBoard."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from upsr_jax.files.whole import naming_full_disk, whole_file, write_whole


class Writer:
    """Write what process 0 measures; on other processes every call does nothing.

    `workdir/metrics.jsonl` gets one line per call. A run that goes on after `step` continues it,
    without what a killed run wrote about later steps; one that begins, as all checkpoints may be
    gone, sets an earlier one's aside as metrics_SECONDS.jsonl, by its time.
    """

    def __init__(self, workdir: Path, step: int, enabled: bool):
        self.workdir = workdir
        self.enabled = enabled
        self.path, self.folder = workdir / "metrics.jsonl", workdir / "tensorboard"
        if enabled:
            if step == 0 and self.path.exists():
                seconds = int(self.path.stat().st_mtime)
                self.path.replace(self.path.with_name(f"metrics_{seconds}.jsonl"))
            keep_lines(self.path, step)
            self.lines = self.path.open("a", buffering=1)
            with naming_full_disk(self.folder):
                self.folder.mkdir(exist_ok=True)
                # Without SummaryWriter's thread: once dead, it would let the run wait for ever.
                self.events = EventsWriter(str(self.folder / "events"))
                purge = SessionLog(status=SessionLog.START)
                self._add_event(step + 1, session_log=purge)  # drops what a killed run wrote

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Write named numbers measured after `step` updates."""
        if not self.enabled:
            return
        named = {f"{prefix}/{name}": float(value) for name, value in values.items()}
        line = {"step": step, "time": round(time.time(), 3), **named}
        with naming_full_disk(self.path):
            self.lines.write(json.dumps(line) + "\n")
        with naming_full_disk(self.folder):
            for name, value in named.items():
                self._add_event(step, summary=summary.scalar(name, value))
            self.events.flush()

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture, uint8 [h, w, 3], to `workdir/pictures/STEP_NAME.png`."""
        if not self.enabled:
            return
        path = self.workdir / "pictures" / f"{step:07d}_{name}.png"
        with naming_full_disk(path):
            path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            Image.fromarray(picture).save(file, "PNG")
        with naming_full_disk(self.folder):
            self._add_event(step, summary=summary.image(name, picture, dataformats="HWC"))

    def _add_event(self, step: int, **content: Any) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            with naming_full_disk(self.path):
                self.lines.close()
            with naming_full_disk(self.folder):
                self.events.close()


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
