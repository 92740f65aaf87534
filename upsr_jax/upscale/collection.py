"""Upscale many pictures: choose them, share them over processes, and skip what is done.

Each result carries a note, in its EXIF data, of everything that decided it. To go on after a stop
or a kill, the same command compares the notes: a result whose note is the one it would write now is
kept, and any other file in its place is never replaced without being asked.
"""

import hashlib
import os
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from upsr_jax.cluster.join import read_settings
from upsr_jax.cluster.roll_call import roll_call
from upsr_jax.files.find import READ_SUFFIXES, UNREAD_SUFFIXES, check_local, find_images
from upsr_jax.files.photos import (
    MAX_PIXELS,
    ImageError,
    count_pixels,
    read_note,
    read_photo,
)
from upsr_jax.files.whole import file_sha256, remove_parts
from upsr_jax.files.write_photo import check_storable, write_image
from upsr_jax.upscale.upscaler import Upscaler


class Job(NamedTuple):
    """One picture to upscale and where its result goes."""

    source: Path
    target: Path


class Counts(NamedTuple):
    """What became of jobs; `kept` had their result before."""

    done: int
    kept: int
    failed: int


def plan_jobs(inputs: list[Path], out: Path, suffix: str) -> tuple[list[Job], list[str]]:
    """List the pictures to upscale, and the problems with the inputs.

    Raises ValueError if two pictures would have one result, a result would replace another picture
    of them, or `out` is one of the folders to search.
    """
    check_local(out, *inputs)
    sources, problems = {}, []
    for given in inputs:
        if os.path.isdir(given):
            found, left_out = find_sources(given, out)
            problems += left_out
            pairs = [(path, out / path.relative_to(given).with_suffix(suffix)) for path in found]
            if not found and not left_out:
                suffixes = ", ".join(READ_SUFFIXES)
                problems.append(f"{given}: no images in this folder; looked for {suffixes}.")
        elif os.path.exists(given):  # unlike Path.exists, it never raises
            pairs = [(given, out / f"{given.stem}{suffix}")]
        else:
            pairs = []
            problems.append(f"{given}: no such file.")
        for source, target in pairs:
            other = sources.setdefault(target, source)
            if other != source and os.path.realpath(other) != os.path.realpath(source):
                raise ValueError(
                    f"{other} and {source} would both become {target}; rename one of them."
                )
    real = {os.path.realpath(source): source for source in sources.values()}
    for target, source in sources.items():
        other = real.get(os.path.realpath(target), source)
        if other != source:
            raise ValueError(
                f"the result of {source} would replace {other}, which is to be upscaled as well; "
                "choose another --out."
            )
    return [Job(source, target) for target, source in sources.items()], problems


def find_sources(folder: Path, out: Path) -> tuple[list[Path], list[str]]:
    """List the pictures in a folder, without the results if `out` lies in it, and the problems.

    Those are subfolders that cannot be read, and pictures of formats that are not.
    """
    # Path.resolve fails on links in a circle.
    above, below = (os.path.join(os.path.realpath(path), "") for path in (folder, out))
    if above == below:
        raise ValueError(f"{folder} holds the pictures; choose another --out for the results.")
    problems, pictures = [], []
    for path in find_images(
        folder,
        READ_SUFFIXES + UNREAD_SUFFIXES,
        lambda error: problems.append(f"{error.filename}: cannot be read ({error.strerror})."),
    ):
        if below.startswith(above) and os.path.realpath(path).startswith(below):
            continue
        if path.lower().endswith(READ_SUFFIXES):
            pictures.append(Path(path))
        else:
            problems.append(f"{path}: this format is not read; save it as JPEG or PNG.")
    return pictures, problems


def meet_others(
    coordinator: str | None, processes: int | None, process_id: int | None, plan: Any
) -> tuple[int, int]:
    """Wait until all processes of the run are there; return which of them this is, of how many.

    All must have the same `plan`, by its repr. They share no JAX runtime, as no result needs two of
    them: should one be lost, the others still end their shares. Raises ValueError or OSError, as
    `join.initialize` does.
    """
    settings = read_settings(coordinator, processes, process_id, os.environ)
    if settings is None or settings.process_count == 1:
        return 0, 1
    digest = hashlib.sha256(repr(plan).encode()).hexdigest()
    roll_call(settings._replace(plan=digest), timeout=300)
    if settings.local_device_ids:  # processes on one host, with a device each
        visible = ",".join(map(str, settings.local_device_ids))
        jax.config.update("jax_cuda_visible_devices", visible)
        jax.config.update("jax_rocm_visible_devices", visible)
    return settings.process_id, settings.process_count


def take_share(jobs: list[Job], out: Path, process_id: int, process_count: int) -> list[Job]:
    """Choose the jobs of one process by the names of their results.

    A name's process depends on nothing else, so processes agree without a word between them.
    """

    def owner(job: Job) -> int:
        name = job.target.relative_to(out).as_posix()
        return zlib.crc32(os.fsencode(name)) % process_count

    return [job for job in jobs if owner(job) == process_id]


def run_jobs(jobs: list[Job], upscaler: Upscaler, seed: int, overwrite: bool) -> Counts:
    """Upscale pictures, several at once, and report those that fail."""
    done = kept = failed = 0
    for folder in {job.target.parent for job in jobs}:
        remove_parts(folder)
    room = Room(MAX_PIXELS)  # so that many pictures take no more memory than the largest one
    # Twice the tiles that run at once, so that a batch fills while one runs; and those that read
    # and write.
    threads = min(len(jobs), 2 * upscaler.batch + (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        alone = len(jobs) == 1
        futures = {
            pool.submit(run_job, job, upscaler, seed, overwrite, room, alone): job for job in jobs
        }
        try:
            finished = as_completed(futures)
            for future in tqdm(finished, total=len(jobs), unit="image", disable=None):
                try:
                    is_new = future.result()
                except ImageError as error:
                    tqdm.write(str(error), file=sys.stderr)
                    failed += 1
                except (FloatingPointError, MemoryError, OSError) as error:
                    tqdm.write(f"{futures[future].source}: {error}", file=sys.stderr)
                    failed += 1
                else:
                    done += is_new
                    kept += not is_new
        except BaseException:
            upscaler.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Counts(done, kept, failed)


def run_job(
    job: Job, upscaler: Upscaler, seed: int, overwrite: bool, room: "Room", progress: bool
) -> bool:
    """Upscale one picture, or return False if that has been done.

    Raises ImageError, before the work, if its result cannot be written.
    """
    pixels = count_pixels(job.source)
    # Before the picture is read: should it change meanwhile, the next run finds another one.
    note = upscaler.describe(file_sha256(job.source), seed)
    exists = os.path.exists(job.target)
    is_empty = exists and os.path.getsize(job.target) == 0  # as a kill leaves it without links
    if exists and not is_empty:
        if job.target.samefile(job.source):
            raise ImageError(f"{job.source}: its result would replace it; choose another --out.")
        if read_note(job.target) == note:
            return False
        if not overwrite:
            raise ImageError(
                f"{job.source}: {job.target} exists already, and not as this command makes it; "
                "add --overwrite to replace it."
            )
    with room.hold(pixels):
        image, kept = read_photo(job.source)
        height, width, channels = image.shape
        check_storable(job.target, 4 * height, 4 * width, has_alpha=channels == 4)
        write_image(job.target, upscaler(image, seed, progress), overwrite or is_empty, note, kept)
    return True


class Room:
    """Room in memory for so many pixels at once."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self.held = 0
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait for room and keep it as long as the context lasts."""
        with self.changed:
            self.changed.wait_for(lambda: self.held + pixels <= self.pixels)
            self.held += pixels
        try:
            yield
        finally:
            with self.changed:
                self.held -= pixels
                self.changed.notify_all()
