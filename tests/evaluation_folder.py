"""Write a small evaluation, its pictures of one colour each, for tests of the reports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from upsr_jax.evaluation.metric_list import METRICS
from upsr_jax.files.write_photo import write_image

LR, RESTORED, TRUTH = (200, 30, 30), (30, 180, 30), (30, 30, 200)  # red, green, blue


def write_evaluation(
    out: Path,
    images: Mapping[str, Mapping[str, float | None]],
    pictures: bool = True,
    **changes: Any,
) -> None:
    """Write results.json for images and their metric values; `changes` go into it as they are."""
    keys = list(dict.fromkeys(key for row in images.values() for key in row))
    means = {}
    for metric in keys:
        values = [x for row in images.values() if (x := row.get(metric)) is not None]
        ends = {"low": min(values), "high": max(values)}
        means[metric] = {"mean": float(np.mean(values)), **ends, "images": len(values)}
    results = {
        "protocol": {"sampler": "ddim, 5 steps", "seed": 0},
        "timing": {"images": len(images), "seconds": 8.0, "networks_seconds": 6.0},
        "metrics": {key: METRICS[key].higher_is_better for key in keys if key in METRICS},
        "means": means,
        "images": {
            name: {**row, "lr": f"{out}/lr/{name}.png", "gt": f"{out}/gt/{name}.png", "sha256": "1"}
            for name, row in images.items()
        },
        "broken": {},
        **changes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results))
    for name in images if pictures else ():
        write_image(out / "lr" / f"{name}.png", plain(LR, 16))
        write_image(out / "gt" / f"{name}.png", plain(TRUTH, 64))
        write_image(out / "images" / f"{name}.png", plain(RESTORED, 64))
        write_image(out / "uncertainty" / f"{name}.png", plain((255, 255, 255), 64))


def plain(colour: tuple[int, int, int], side: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()
