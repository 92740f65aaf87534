"""Evaluate a model as its paper does: restore images, measure them, and keep what came of it.

What a number depends on stands in `protocol`. An image's result follows from its pixels,
its name, the seed and the batch of a device, never from the other images or the devices.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax.cluster.devices import local_mesh, put_whole
from upsr_jax.data.prefetch import map_ahead
from upsr_jax.data.test_sets import (
    Broken,
    Entry,
    Example,
    find_entries,
    make_read_fn,
    read_or_reason,
)
from upsr_jax.evaluation import folder as eval_folder
from upsr_jax.evaluation.measure import (
    Measured,
    check_eval,
    columns,
    host_metrics,
    load_pristine_model,
    make_evaluate_fn,
    measurable,
)
from upsr_jax.evaluation.pieces import OVERLAP, share
from upsr_jax.evaluation.protocol import describe_protocol
from upsr_jax.evaluation.pyiqa_scores import with_scores
from upsr_jax.evaluation.report import write_report
from upsr_jax.evaluation.report.results import RESULTS
from upsr_jax.evaluation.timing import Timing, timing_lines
from upsr_jax.files.whole import write_json
from upsr_jax.metrics import HIGHER_IS_BETTER
from upsr_jax.metrics.intervals import mean_over
from upsr_jax.upscale.restore import SIZE_MULTIPLE, with_options
from upsr_jax.weights.model_folder import load_model, take_networks

THREADS = 4  # that read ahead, and as many that write


def evaluate_folders(
    model: str | Path,
    lr: str | Path,
    gt: str | Path | None,
    out: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    method: str | None = None,
    min_noise: float | None = None,
    fidelity: float = 0.0,
    metrics: Sequence[str] = tuple(HIGHER_IS_BETTER),
    per_device_batch: int = 1,
    tile: int = 512,
) -> dict[str, Any]:
    """Evaluate a model folder on any images, with or without ground truth, as `evaluate_set` does.

    `steps`, `method` and `min_noise` are those of `restore.with_options`; images with sides above
    `tile` are cut in tiles; the others are those of config.eval.
    """
    if tile <= OVERLAP or tile % SIZE_MULTIPLE:
        raise ValueError(
            f"tile is {tile}, but must be a multiple of {SIZE_MULTIPLE} above {OVERLAP}"
        )
    config, params = load_model(model)
    config = with_options(config, steps, method, min_noise)
    config.eval = dict(
        model=str(model),
        gt=str(gt or ""),
        lr=str(lr),
        source="give another folder",
        crop_size=256,
        max_images=10**9,
        pictures=1,
        seed=seed,
        metrics=tuple(metrics),
        per_device_batch=per_device_batch,
        sides=(*range(SIZE_MULTIPLE, tile, SIZE_MULTIPLE), tile),
        fidelity=fidelity,
    )
    config.degradation = dict(use_sharp=False)  # unused: both folders hold what they should
    params = take_networks(model, config, params, config, ["estimator", config.network])
    return evaluate_set(config, find_entries(config.eval), params, Path(out))


def evaluate_set(
    config: ConfigDict, entries: Sequence[Entry], params: Mapping[str, Any], out: Path
) -> dict[str, Any]:
    """Restore and measure the first config.eval.max_images; write and return `out/results.json`.

    `out` also gets the images, their noise weights and rows.jsonl as they are done, and the report
    at the end; the same call does only what is missing, or has changed. Processes share the images
    and the folder. A broken image is reported, listed as such, and part of no mean. Protocol, means
    and timing are printed; the timing is of the last images that process 0 restored.

    Raises:
      OSError: something can't be written.
      ValueError: the folder was begun with other options, is in use or holds the images to evaluate
        on; or the config asks for what can't be.
    """
    check_eval(config.eval)
    eval_folder.check_apart(out, (config.eval.gt, config.eval.lr))
    metrics = measurable(config.eval)
    protocol = describe_protocol(config, params, metrics)
    found, entries = len(entries), entries[: config.eval.max_images]
    with eval_folder.opened(out, protocol, entries):
        rows = eval_folder.read_rows(out)
        own = share(entries, jax.process_index(), jax.process_count())
        missing = [entry for entry in own if entry.name not in rows]
        timing = Timing()
        if missing:
            run(config, params, metrics, missing, out, timing)
        devices = {"processes": jax.process_count(), "devices": jax.device_count()}
        timings = timing.summary() | devices
        rows = eval_folder.wait_for_rows(out, [entry.name for entry in entries])
        if len(entries) < found:
            protocol["taken"] = f"{len(entries):,} of {found:,} images (config.eval.max_images)"
        results = with_scores(summarize(protocol, metrics, rows), out)
        results["timing"] = timings if timing.images else eval_folder.read_timing(out) or timings
        if jax.process_index() == 0:
            write_json(out / RESULTS, results)
            write_report(out)
            print(*(f"{key}: {value}" for key, value in results["protocol"].items()), sep="\n")
            print(f"\n{means_table(results)}\n\n{timing_lines(results['timing'])}")
    return results


def run(
    config: ConfigDict,
    params: Mapping[str, Any],
    metrics: Sequence[str],
    entries: Sequence[Entry],
    out: Path,
    timing: Timing,
) -> None:
    """Do the images of this process, on all its devices, and write files and rows in threads."""
    rows = eval_folder.Rows(out)
    progress = tqdm(total=len(entries), unit="image", disable=jax.process_index() != 0)

    def report_broken(broken: Broken) -> None:
        progress.write(f"{broken.name} is broken: {broken.reason}", file=sys.stderr)
        rows.append({"name": broken.name, "broken": broken.reason})

    def report_lost(name: str, error: MemoryError) -> None:
        report_broken(Broken(name, str(error)))
        progress.update()

    with timing.spent("setup"):
        mesh = local_mesh()
        evaluate_fn = make_evaluate_fn(config, metrics, mesh, timing, report_lost)
        params = put_whole(params, mesh)
        pristine = load_pristine_model()
        read_fn = make_read_fn(config)
    files = {entry.name: {"lr": entry.lr, "gt": entry.gt} for entry in entries}

    def readable(images: Iterable[Example | Broken]) -> Iterator[Example]:
        for image in images:
            if isinstance(image, Broken):
                report_broken(image)
                progress.update()
            else:
                yield image

    def read(entry: Entry) -> Example | Broken:
        with timing.beside():
            return read_or_reason(read_fn, entry)

    def finish(item: Measured) -> None:
        name = item.example.name
        if not np.isfinite(item.restored.image).all():
            return report_broken(Broken(name, "the model gave NaN or infinity"))
        with timing.beside():
            eval_folder.save_images(out, name, item.restored)
            values = item.values | host_metrics(metrics, item.restored, pristine)
        numbers = {key: finite(values[key]) for key in columns(metrics)}
        rows.append({"name": name, **numbers, **files[name], "sha256": item.example.sha256})

    images = map_ahead(read, entries, num_workers=0, num_threads=THREADS, ahead=2 * THREADS)
    writing: deque[Future] = deque()
    with progress, ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in evaluate_fn(params, readable(images)):
                timing.images += 1
                writing.append(pool.submit(finish, item))
                while writing and (len(writing) > 2 * THREADS or writing[0].done()):
                    wait(writing, progress, timing)
            while writing:
                wait(writing, progress, timing)
        finally:
            pool.shutdown()
            rows.close()


def wait(writing: deque[Future], progress: tqdm, timing: Timing) -> None:
    """Wait for the image that was handed in first."""
    with timing.spent("write"):
        writing.popleft().result()
    progress.update()


def finite(value: float) -> float | None:
    """Return None for what is not a number, which JSON has no sign for."""
    return value if np.isfinite(value) else None


def summarize(
    protocol: Mapping[str, Any], metrics: Sequence[str], rows: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Put together protocol, means with their intervals, and images.

    A mean is over the images that the metric could be measured for, as many as `images` says; a
    metric that could be measured for none is left out.
    """
    broken = {name: row["broken"] for name, row in rows.items() if "broken" in row}
    images = {
        name: {key: value for key, value in row.items() if key != "name"}
        for name, row in rows.items()
        if name not in broken
    }
    means = {key: mean_over(images.values(), key) for key in columns(metrics)}
    means = {key: mean for key, mean in means.items() if mean}
    return {
        "protocol": {**protocol, "images": len(images), "broken images": len(broken)},
        "metrics": {name: HIGHER_IS_BETTER[name] for name in metrics if name in means},
        "means": means,
        "images": images,
        "broken": broken,
    }


def means_table(results: Mapping[str, Any]) -> str:
    """Lay out the means and their intervals in lines of text."""
    lines = [f"{'':14}{'bicubic':>10}{'this model':>14}   95% interval"]
    for name in results["metrics"]:
        mean = results["means"][name]
        bicubic = results["means"].get(f"bicubic_{name}")
        beside = f"{bicubic['mean']:.4f}" if bicubic else "-"
        ends = f"{mean['low']:.4f} .. {mean['high']:.4f}"
        lines.append(f"{name:14}{beside:>10}{mean['mean']:>14.4f}   {ends}")
    lines += [f"broken: {name}: {reason}" for name, reason in results["broken"].items()]
    return "\n".join(lines)
