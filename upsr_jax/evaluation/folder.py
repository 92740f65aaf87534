"""The folder of one evaluation: images, a row of numbers for each as it is done, and results.json.

A row is appended after its images are written, so a kill at any time loses no more than what was
at work. Several processes write rows of their own into one folder that all of them see.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from upsr_jax.cluster.join import create_workdir
from upsr_jax.data.test_sets import Entry, hash_files
from upsr_jax.evaluation.measure import Measured
from upsr_jax.evaluation.report.results import IMAGE, fits, read_results
from upsr_jax.evaluation.timing import Timing
from upsr_jax.files.whole import (
    check_begun,
    locked,
    naming_full_disk,
    parse_json,
    read_json,
    write_json,
    write_whole,
)
from upsr_jax.files.write_photo import write_image
from upsr_jax.upscale.upscaler import Upscaler, to_bytes, with_alpha

OPTIONS = "options.json"
# What a row is; its other keys are metrics.
BROKEN = {"name": str, "broken": str}
WHOLE = {"name": str, **IMAGE, "bytes": list, str: float | None}


@contextmanager
def opened(out: Path, options: Mapping[str, Any], entries: Sequence[Entry]) -> Iterator[None]:
    """Make the folder, or make it ready to go on, and keep other evaluations out of it meanwhile.

    Call it on every process. Images that have to be done again lose their rows.

    Raises:
      ValueError: it was begun with other options, or another evaluation is at work in it.
      OSError: it can't be written, or another host doesn't see it.
    """
    with naming_full_disk(out):
        create_workdir(out)
    first = jax.process_index() == 0
    with locked(out) if first else nullcontext():
        if first and not (out / OPTIONS).exists():
            write_json(out / OPTIONS, options)
        multihost_utils.sync_global_devices("evaluation options")
        begun = read_json(out / OPTIONS)
        check_begun(out, begun, dict.fromkeys(begun) | dict(options))
        if first:
            _clean(out, {entry.name: entry for entry in entries})
        multihost_utils.sync_global_devices("evaluation folder")
        yield


def _clean(out: Path, entries: Mapping[str, Entry]) -> None:
    """Drop the rows of images that have to be done again."""
    for file in out.glob("rows*.jsonl"):
        rows = [row for row in _parse(file) if _is_kept(out, row, entries)]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _is_kept(out: Path, row: Mapping[str, Any], entries: Mapping[str, Entry]) -> bool:
    """Tell whether an image was whole, is what it was then, and has its results."""
    name = row["name"]
    if "broken" in row:
        return False
    if name not in entries:  # it may be asked for again
        return True
    try:
        unchanged = row.get("sha256") == hash_files(entries[name])
    except OSError:
        return False
    return unchanged and row["bytes"] == count_bytes(out, name)


class Rows:
    """This process's file of rows, to which threads append."""

    def __init__(self, out: Path):
        process = f".{jax.process_index()}" if jax.process_count() > 1 else ""
        self.lock = threading.Lock()
        self.path = out / f"rows{process}.jsonl"
        self.file = self.path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole or, if the process is killed, cut off."""
        with self.lock, naming_full_disk(self.path):
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        with naming_full_disk(self.path):
            self.file.close()


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of all processes, by the names of their images."""
    files = sorted(out.glob("rows*.jsonl"))
    return {row["name"]: row for file in files for row in _parse(file)}


def wait_for_rows(out: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Wait until all processes have done their images; return the rows by name, in order.

    No collective: those of a CPU fail after 30 s of waiting. If a process is lost, JAX ends this.
    """
    while set(names) - (rows := read_rows(out)).keys():
        time.sleep(0.5)
    return {name: rows[name] for name in names}


def check_apart(out: Path, images: Sequence[str]) -> None:
    """Raise ValueError if results would replace images to evaluate on, or be taken for some."""
    for folder in map(Path, filter(None, images)):
        for results in (out / "images", out / "uncertainty"):
            above, below = folder.resolve(), results.resolve()
            if below.is_relative_to(above) or above.is_relative_to(below):
                raise ValueError(
                    f"results would go to {results}, among the images to evaluate on in {folder}: "
                    "choose another folder for them"
                )


def image_files(out: Path, name: str) -> tuple[Path, Path]:
    """Name the files of a restored image and of its noise weight."""
    return out / "images" / f"{name}.png", out / "uncertainty" / f"{name}.png"


def count_bytes(out: Path, name: str) -> list[int]:
    """Count the bytes of an image's files, none of one that is missing."""
    files = image_files(out, name)
    return [file.stat().st_size if file.is_file() else 0 for file in files]


def save_images(out: Path, item: Measured, upscaler: Upscaler, seed: int) -> None:
    """Write a restored image, as `upsr upscale` writes it, and its noise weight as 8-bit grey.

    Raises ImageError if that can't be done.
    """
    example, restored = item.example, item.restored
    image_file, weight_file = image_files(out, example.name)
    picture = with_alpha(to_bytes(np.asarray(restored.image)), example.picture)
    note = upscaler.describe(example.source_sha256, seed)
    write_image(image_file, picture, overwrite=True, note=note, kept=example.kept)
    weight = np.round(255 * restored.noise_weight.mean(axis=-1, keepdims=True)).astype(np.uint8)
    write_image(weight_file, weight.repeat(3, axis=-1), overwrite=True)


def read_timing(out: Path) -> dict[str, Any] | None:
    """Read the timing of the results that are there; None if there are no whole ones."""
    try:
        timing = read_results(out)["timing"]
    except ValueError:
        return None
    return timing if timing.keys() >= Timing().summary().keys() else None


def _parse(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a file, but for those that a kill, a full disk or another has spoiled."""
    rows = []
    for line in file.read_bytes().splitlines():
        with suppress(ValueError):
            row = parse_json(line)
            if fits(row, BROKEN) or fits(row, WHOLE):
                rows.append(row)
    return rows
