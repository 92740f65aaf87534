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

    `workdir/metrics.jsonl` gets one line per call, appended, so that a resumed run continues it.
    """

    def __init__(self, workdir: Path, enabled: bool):
        self.workdir = workdir
        self.enabled = enabled
        if enabled:
            self.lines = (workdir / "metrics.jsonl").open("a", buffering=1)
            self.events = SummaryWriter(str(workdir / "tensorboard"))

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
        cv2.imwrite(str(path), picture[..., ::-1])
        self.events.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self.lines.close()
            self.events.close()
