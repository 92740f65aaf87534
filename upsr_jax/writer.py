"""Write metrics to JSON lines and TensorBoard, and pictures to both a folder and TensorBoard."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from tensorboardX import SummaryWriter


class Writer:
    """Write what process 0 measures; on other processes every call does nothing.

    `workdir/metrics.jsonl` gets one line per call. A run that goes on after `step` continues it,
    without what a killed run wrote about later steps.
    """

    def __init__(self, workdir: Path, step: int, enabled: bool):
        self.workdir = workdir
        self.enabled = enabled
        if enabled:
            path = workdir / "metrics.jsonl"
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
            self.events.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture, uint8 [h, w, 3], to `workdir/pictures/STEP_NAME.png`."""
        if not self.enabled:
            return
        path = self.workdir / "pictures" / f"{step:07d}_{name}.png"
        path.parent.mkdir(exist_ok=True)
        if not cv2.imwrite(str(path), picture[..., ::-1]):
            raise OSError(f"{path} could not be written")
        self.events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self.lines.close()
            self.events.close()


def keep_lines(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, and one that a kill cut off."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
