"""Evaluate a model as its paper does: restore images, measure them, and keep what came of it.

What a number depends on stands in `protocol`. An image's result follows from its pixels, the seed,
its name if config.eval.noise_by_name, and the batch of a device, never from the other images or the
devices.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from upsr_jax.cluster.devices import local_mesh
from upsr_jax.data.prefetch import map_ahead
from upsr_jax.data.test_sets import Entry, ImageSet, find_entries, make_read_fn
from upsr_jax.evaluation import folder
from upsr_jax.evaluation.measure import (
    Failed,
    Measured,
    Meters,
    create_meters,
    create_upscaler,
    measure_all,
    measure_on_host,
    restore_all,
    seed_of,
)
from upsr_jax.evaluation.metric_list import METRICS, columns, measurable
from upsr_jax.evaluation.pieces import share
from upsr_jax.evaluation.protocol import collect_settings, describe_protocol
from upsr_jax.evaluation.pyiqa_scores import with_scores
from upsr_jax.evaluation.report import write_report
from upsr_jax.evaluation.report.results import CAPPED, RESULTS, count_of
from upsr_jax.evaluation.settings import Settings
from upsr_jax.evaluation.timing import Timing, timing_lines
from upsr_jax.files.find import check_local
from upsr_jax.files.names import show
from upsr_jax.files.whole import write_json
from upsr_jax.metrics.intervals import mean_over
from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.restore import Sampling, with_sampling
from upsr_jax.upscale.upscaler import OVERLAP, TILE, Upscaler, check_tile, name_model
from upsr_jax.weights.model_folder import load_model, take_networks

THREADS = 4  # that measure on the host and write


def evaluate_folders(
    model: str | Path,
    lr: str | Path,
    gt: str | Path | None,
    out: str | Path,
    *,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - it is frozen
    metrics: Sequence[str] = tuple(METRICS),
    per_device_batch: int | None = None,
    tile: int = TILE,
    device: str | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model folder on any images, with or without ground truth, as `evaluate_set` does.

    The pictures are those that `Upscaler.from_pretrained(model, tile, device, precision, ...)`
    makes with this seed.
    """
    check_local(lr, gt or "", out)
    check_tile(tile, OVERLAP)
    mesh = local_mesh(device)
    config, params = load_model(model)
    config = with_sampling(config, sampling)
    settings = Settings(
        ImageSet(gt=str(gt or ""), lr=str(lr), seed=seed),
        model=str(model),
        metrics=tuple(metrics),
        tile=tile,
        overlap=OVERLAP,
        blend="feather",
        noise_by_name=False,
        per_device_batch=per_device_batch or Upscaler.tiles_per_device(mesh),
        fidelity=sampling.fidelity,
        precision=precision,
        device=device,
    )
    params = take_networks(model, config, params, config, config.parts)
    name = name_model(Path(model))
    return evaluate_set(config, params, settings, find_entries(settings.images), Path(out), name)


def evaluate_set(
    config: ModelConfig,
    params: Mapping[str, Any],
    settings: Settings,
    entries: Sequence[Entry],
    out: Path,
    model: str | None = None,
) -> dict[str, Any]:
    """Restore and measure the first `max_images` entries; write and return `out/results.json`.

    `out` also gets the images, their noise weights and rows.jsonl as they are done, and the report
    at the end; the same call does only what is missing, or has changed. Processes share the images
    and the folder. A broken image is reported, listed as such, and part of no mean. Protocol, means
    and timing are printed; the timing is of the last images that process 0 restored. `model` names
    the weights in the notes of the images, by default by their fingerprint.

    Raises:
      OSError: something can't be written.
      ValueError: the folder was begun with other options, is in use or holds the images to evaluate
        on; or the config asks for what can't be.
    """
    check_local(out)
    images = settings.images
    folder.check_apart(out, (images.gt, images.lr))
    metrics = measurable(settings.metrics, bool(images.gt))
    decisive = collect_settings(config, params, settings, metrics)
    protocol = describe_protocol(decisive)
    found, entries = len(entries), entries[: images.max_images]
    with folder.opened(out, decisive, entries):
        rows = folder.read_rows(out)
        own = share(entries, jax.process_index(), jax.process_count())
        missing = [entry for entry in own if entry.name not in rows]
        timing = Timing()
        if missing:
            name = model or decisive["weights"]
            run(config, params, settings, name, missing, out, timing)
        count = jax.device_count() if settings.device is None else local_mesh(settings.device).size
        devices = {"processes": jax.process_count(), "devices": count}
        timings = timing.summary() | devices
        rows = folder.wait_for_rows(out, [entry.name for entry in entries])
        protocol |= describe_names(entries)
        if len(entries) < found:
            protocol["taken"] = f"{len(entries):,} of {found:,} images (config.eval.max_images)"
        results = with_scores(summarize(protocol, metrics, rows), out)
        results["timing"] = timings if timing.images else folder.read_timing(out) or timings
        if jax.process_index() == 0:
            write_json(out / RESULTS, results)
            write_report(out)
            print(
                *(show(f"{key}: {value}") for key, value in results["protocol"].items()), sep="\n"
            )
            print(f"\n{means_table(results)}\n\n{timing_lines(results['timing'])}")
    return results


def run(
    config: ModelConfig,
    params: Mapping[str, Any],
    settings: Settings,
    model: str,
    entries: Sequence[Entry],
    out: Path,
    timing: Timing,
) -> None:
    """Do the images of this process, on all its devices, and write files and rows in threads."""
    with timing.spent("setup"):
        upscaler = create_upscaler(config, params, settings, model, timing)
        meters = create_meters(settings, timing)
    progress = tqdm(total=len(entries), unit="image", disable=jax.process_index() != 0)
    rows = folder.Rows(out)
    files = {entry.name: {"lr": entry.lr, "gt": entry.gt} for entry in entries}
    finish_fn = partial(finish, settings, upscaler, meters, out, files, rows, timing, progress)
    restored = restore_all(upscaler, make_read_fn(settings.images), entries, settings, timing)
    with progress, closing(rows), closing(restored):
        measured = measure_all(restored, meters)
        for is_whole in map_ahead(finish_fn, measured, 0, THREADS, ahead=2 * THREADS):
            timing.images += is_whole
            progress.update()


def finish(
    settings: Settings,
    upscaler: Upscaler,
    meters: Meters,
    out: Path,
    files: Mapping[str, Mapping[str, str | None]],
    rows: folder.Rows,
    timing: Timing,
    progress: tqdm,
    item: Measured | Failed,
) -> bool:
    """Write an image and its row of numbers, or the reason why there is none: False."""
    if isinstance(item, Failed):
        progress.write(show(f"{item.name} is broken: {item.error}"), file=sys.stderr)
        rows.append({"name": item.name, "broken": str(item.error)})
        return False
    example = item.example
    with timing.beside():
        folder.save_images(out, item, upscaler, seed_of(settings, example.name))
        values = measure_on_host(item, meters)
    numbers = {key: finite(values[key]) for key in meters.columns}
    found = {**files[example.name], "sha256": example.sha256}
    rows.append(
        {"name": example.name, **numbers, **found, "bytes": folder.count_bytes(out, example.name)}
    )
    return True


def describe_names(entries: Sequence[Entry]) -> dict[str, str]:
    """Say how pairs are named, if their two names are not the same."""
    for entry in entries:
        gt, lr = Path(entry.gt or ""), Path(entry.lr or "")
        if gt.stem and lr.stem and gt.stem != lr.stem:
            return {"pairs": f"matched by how their names end, as {gt.name} and {lr.name}"}
    return {}


def finite(value: float) -> float | None:
    """Return None for what is not a number, which JSON has no sign for."""
    return value if np.isfinite(value) else None


def summarize(
    protocol: Mapping[str, Any], metrics: Sequence[str], rows: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Put together protocol, means with their intervals, and images.

    A mean is over the images that the metric could be measured for, as many as `images` says, and
    `capped` says how many of them have the most it gives; a metric that could be measured for none
    is left out.
    """
    broken = {name: row["broken"] for name, row in rows.items() if "broken" in row}
    images = {
        name: {key: value for key, value in row.items() if key != "name"}
        for name, row in rows.items()
        if name not in broken
    }
    means = {}
    for key in columns(metrics):
        if mean := mean_over(images.values(), key):
            most = METRICS[key.removeprefix("bicubic_")].most
            capped = sum((row.get(key) or 0) > most - 0.01 for row in images.values())
            means[key] = {**mean, "capped": capped}
    return {
        "protocol": {**protocol, "images": len(images), "broken images": len(broken)},
        "metrics": {name: METRICS[name].higher_is_better for name in metrics if name in means},
        "means": means,
        "images": images,
        "broken": broken,
    }


def means_table(results: Mapping[str, Any]) -> str:
    """Lay out the means and their intervals in lines of text."""
    lines = [f"{'':14}{'bicubic':>10}{'this model':>14}   {'95% interval':20}   images"]
    means = results["means"]
    for name in filter(means.__contains__, results["metrics"]):
        mean = means[name]
        bicubic = results["means"].get(f"bicubic_{name}")
        beside = f"{bicubic['mean']:.4f}" if bicubic else "-"
        ends = f"{mean['low']:.4f} .. {mean['high']:.4f}"
        lines.append(
            f"{show(name):14}{beside:>10}{mean['mean']:>14.4f}   {ends:20}   "
            f"{count_of(results, name)}"
        )
    if any(mean.get("capped") for mean in means.values()):
        lines.append(CAPPED)
    lines += [show(f"broken: {name}: {reason}") for name, reason in results["broken"].items()]
    return "\n".join(lines)
