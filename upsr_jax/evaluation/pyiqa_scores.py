"""Measure results by metrics of pyiqa, where a user has installed it.

CLIP-IQA, MUSIQ, MANIQA and others need weights that no package carries; pyiqa downloads them. It is
no dependency of ours: its licence (PolyForm Noncommercial) is for its users to accept.
"""

import copy
import importlib
import importlib.metadata
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from upsr_jax.data.test_sets import centre_crop
from upsr_jax.evaluation.folder import image_files
from upsr_jax.evaluation.metric_list import PYIQA
from upsr_jax.evaluation.report import write_report
from upsr_jax.evaluation.report.results import RESULTS, fits, read_results
from upsr_jax.files.names import show
from upsr_jax.files.photos import read_rgb
from upsr_jax.files.whole import parse_json, write_json
from upsr_jax.files.write_photo import write_image
from upsr_jax.metrics.intervals import mean_over
from upsr_jax.upscale.upscaler import to_bytes

SCORES = "scores.json"
SAVE_EVERY = 50  # images
SCORED = {
    "version": str,
    "higher_is_better": bool,
    "values": {str: {"value": float | None, "sha256": str}},
}


def score(out: Path, names: Sequence[str]) -> dict[str, Any]:
    """Add metrics of pyiqa to the results and the report of a finished evaluation in `out`.

    They are measured on the 8-bit images, and on the ground truth where a metric compares. Scores
    stay when the evaluation is run again, but for images that have changed.

    Returns:
      The results, with each metric as "pyiqa:NAME".

    Raises:
      ImportError: pyiqa is not installed.
      OSError: something can't be read or written.
      ValueError: there are no results, or pyiqa doesn't have a metric or can't make it.
    """
    results = read_results(out)
    for name in names:
        measure(out, results, name, *make_metric(name))
    results = with_scores(results, out)
    write_json(out / RESULTS, results)
    write_report(out)
    return results


def make_metric(name: str, on_host: bool = False) -> tuple[Callable[..., float], dict[str, Any]]:
    """Make a metric of pyiqa `(image file[, ground truth file]) -> number`, and describe it.

    `on_host` it leaves accelerators alone, which it would take itself.
    """
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        raise ImportError(
            f"{name} needs pyiqa, which can't be imported ({error}): read its licence, then "
            "pip install pyiqa into this environment"
        ) from error
    try:
        metric = pyiqa.create_metric(name, **({"device": "cpu"} if on_host else {}))
    except Exception as error:  # it raises whatever the network, a package or an assert does
        raise ValueError(
            f"pyiqa can't make the metric {name!r} ({describe(error)}); "
            "`pyiqa -ls` lists those it has, and their weights are downloaded at first use"
        ) from error
    versions = (
        f"{package} {importlib.metadata.version(package)}" for package in ("pyiqa", "torch")
    )
    about = {
        "version": ", ".join(versions),
        "higher_is_better": not metric.lower_better,
        "compares": metric.metric_mode == "FR",
    }
    return lambda *files: float(metric(*map(str, files))), about


def make_host_metrics(names: Iterable[str]) -> dict[str, tuple[Callable[..., float], bool]]:
    """Make metrics of pyiqa that need no ground truth, beside a training on other devices.

    Returns `(image file) -> number` and whether higher is better, by "pyiqa:NAME". Raises as
    `make_metric` does, and ValueError for a metric that compares.
    """
    metrics = {}
    for name in names:
        function, about = make_metric(name, on_host=True)
        if about["compares"]:
            raise ValueError(
                f"config.eval.pyiqa has {name}, which compares with a ground truth: take it out; "
                "`upsr score` measures such on the results of an evaluation"
            )
        metrics[PYIQA + name] = function, about["higher_is_better"]
    return metrics


def measure_by(
    metrics: Mapping[str, Callable[..., float]], name: str, image: Float[np.ndarray, "h w 3"]
) -> dict[str, float]:
    """Measure a restored image, signed, as it would be written; NaN where a metric fails."""
    values = dict.fromkeys(metrics, math.nan)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.png"
        write_image(file, to_bytes(image))
        for key, metric in metrics.items():
            try:
                values[key] = metric(file)
            except Exception as error:  # a small image ends no mean over the others
                tqdm.write(show(f"{key} can't measure {name}: {describe(error)}"))
    return values


def measure(
    out: Path,
    results: Mapping[str, Any],
    name: str,
    metric: Callable[..., float],
    about: Mapping[str, Any],
) -> None:
    """Measure all images that have no score yet, and keep the scores in `out`/scores.json."""
    if about["compares"] and any(row["gt"] is None for row in results["images"].values()):
        raise ValueError(
            f"{name} compares with a ground truth, which {out} was evaluated without: choose a "
            "metric that needs none"
        )
    scores = read_scores(out)
    old = scores.get(name, {"version": None, "values": {}})
    # Numbers of two versions make no mean.
    values = dict(old["values"]) if old["version"] == about["version"] else {}
    scores[name] = {**about, "values": values}
    missing = [
        image
        for image, row in results["images"].items()
        if values.get(image, {}).get("sha256") != row["sha256"]
    ]
    for number, image in enumerate(tqdm(missing, desc=name, unit="image"), 1):
        restored, _ = image_files(out, image)
        row = results["images"][image]
        try:
            value = measure_pair(metric, restored, row) if about["compares"] else metric(restored)
        except Exception as error:  # a small or a lost image ends no mean over the others
            tqdm.write(show(f"{name} can't measure {image}: {describe(error)}"))
            continue
        value = value if np.isfinite(value) else None
        values[image] = {"value": value, "sha256": row["sha256"]}
        if number % SAVE_EVERY == 0:
            write_json(out / SCORES, scores)
    write_json(out / SCORES, scores)


def measure_pair(metric: Callable[..., float], restored: Path, row: Mapping[str, Any]) -> float:
    """Measure an image against its ground truth, or the part of that which it was made of."""
    height, width = read_rgb(restored).shape[:2]
    truth = read_rgb(row["gt"])
    if truth.shape[:2] == (height, width):
        return metric(restored, row["gt"])
    part = truth[:height, :width] if row["lr"] is not None else centre_crop(truth, height)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.png"
        write_image(file, part)
        return metric(restored, file)


def describe(error: Exception) -> str:
    """Say in one line what was raised."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def read_scores(out: Path) -> dict[str, dict[str, Any]]:
    """Read what was measured so far: {metric: {version, higher_is_better, values: {image: …}}}.

    Each value stands beside the hash of the files that the image was evaluated from.
    """
    file = out / SCORES
    try:
        scores: Any = parse_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        scores = None
    if not fits(scores, {str: SCORED}):
        raise ValueError(f"{file}: damaged; remove it and score again")
    return scores


def with_scores(results: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Add the scores kept in `out` to results: columns "pyiqa:NAME", their means and versions."""
    results = copy.deepcopy(dict(results))
    images = results["images"]
    for name, scored in read_scores(out).items():
        key = f"{PYIQA}{name}"
        for image, row in images.items():
            found = scored["values"].get(image, {})
            row[key] = found["value"] if found.get("sha256") == row["sha256"] else None
        if mean := mean_over(images.values(), key):
            results["means"][key] = mean
            results["metrics"][key] = scored["higher_is_better"]
            results["protocol"][key] = f"{scored['version']}, on the written images"
    return results
