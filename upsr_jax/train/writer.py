"""Write metrics to JSON lines and TensorBoard, and pictures to both a folder and TensorBoard."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from upsr_jax.files.whole import whole_file, write_whole


class Writer:
    """Write what process 0 measures; on other processes every call does nothing.

    `workdir/metrics.jsonl` gets one line per call. A run that goes on after `step` continues it,
    without what a killed run wrote about later steps; one that begins, as all checkpoints may be
    gone, sets an earlier one's aside as metrics_SECONDS.jsonl, by its time.
    """

    def __init__(self, workdir: Path, step: int, enabled: bool):
        self.workdir = workdir
        self.enabled = enabled
        if enabled:
            path = workdir / "metrics.jsonl"
            if step == 0 and path.exists():
                path.replace(path.with_name(f"metrics_{int(path.stat().st_mtime)}.jsonl"))
            keep_lines(path, step)
            self.lines = path.open("a", buffering=1)
            self.events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, prefix: str, values: Mapping[str, float]) -> None:
        """Write named numbers measured after `step` updates."""
        if not self.enabled:
            return
        named = {f"{prefix}/{name}": float(value) for name, value in values.items()}
        self.lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **named}) + "\n")
        for name, value in named.items():
            self._check_events()
            self.events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture, uint8 [h, w, 3], to `workdir/pictures/STEP_NAME.png`."""
        if not self.enabled:
            return
        path = self.workdir / "pictures" / f"{step:07d}_{name}.png"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as file:
            Image.fromarray(picture).save(file, "PNG")
        self._check_events()
        self.events.add_image(name, picture, step, dataformats="HWC")

    def _check_events(self) -> None:
        """Raise OSError if the thread that writes events has died: its full queue would block."""
        worker = self.events.file_writer.event_writer._worker
        if not worker.is_alive():
            raise OSError(f"{self.workdir / 'tensorboard'} could not be written: is the disk full?")

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self.lines.close()
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
