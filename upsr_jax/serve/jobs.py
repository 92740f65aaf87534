"""Take in photos to upscale, do a few at once, and refuse what would be too much."""

import functools
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

from upsr_jax.files.open_photo import TOO_LARGE
from upsr_jax.files.photos import ImageError, read_size
from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.collection import Room
from upsr_jax.upscale.photo import AS_IT_WAS, Result, upscale_photo
from upsr_jax.upscale.restore import SIZE_MULTIPLE, Sampling, padded_side, with_sampling
from upsr_jax.upscale.sizes import Wanted, result_size, runs_twice
from upsr_jax.upscale.tiles import SCALE
from upsr_jax.upscale.upscaler import Upscaler, check_seed

AS_TRAINED = Sampling()
VARIANTS = 4  # ways to sample that stay loaded, each compiled on its own


@dataclass(frozen=True)
class Limits:
    """The most bytes and pixels of a photo, jobs that wait, and seconds from arrival to answer."""

    bytes: int = 64 * 2**20
    pixels: int = 16_000_000
    queue: int = 32
    seconds: float = 3600.0


class Refusal(Exception):
    """Why a job is not done, in one sentence; `status` is HTTP's, `retry` the seconds to wait."""

    def __init__(self, status: int, sentence: object, retry: int | None = None):
        super().__init__(str(sentence))
        self.status, self.retry = status, retry


@dataclass(frozen=True)
class Order:
    """A photo, as the bytes of its file, and what is wanted of it."""

    photo: bytes
    wanted: Wanted = AS_IT_WAS
    seed: int = 0
    sampling: Sampling = AS_TRAINED
    uncertainty: bool = False


@dataclass(eq=False)
class Job:
    """An order that was taken in; `size` is the result's height and width."""

    order: Order
    size: tuple[int, int]
    pixels: int
    deadline: float
    share: float = 0.0
    is_stopped: threading.Event = field(default_factory=threading.Event)
    result: Future[Result] = field(default_factory=Future)

    def stop(self) -> None:
        """End it, before it starts or at its next tile; its `result` raises CancelledError."""
        self.is_stopped.set()
        self.result.cancel()  # of one that runs already this changes nothing


def measure_photo(photo: bytes) -> tuple[int, int]:
    """Tell a photo's height and width from its header; raise Refusal if it is none."""
    try:
        return read_size(photo)
    except ImageError as error:
        raise Refusal(413 if TOO_LARGE in str(error) else 422, error) from error


class Desk:
    """Where all jobs of a server come in.

    `load_fn(sampling)` loads the model to sample so. As many jobs run at once as keep the device
    busy, and share its batches of tiles; all others wait in turn.
    """

    def __init__(self, load_fn: Callable[[Sampling], Upscaler], limits: Limits):
        self.limits = limits
        self.load_lock = threading.Lock()
        self.load_fn = functools.lru_cache(VARIANTS)(load_fn)
        upscaler = self.upscaler(AS_TRAINED)
        assert upscaler.made_of is not None
        self.config: ModelConfig = upscaler.made_of[0]
        self.at_once = upscaler.threads
        self.pool = ThreadPoolExecutor(self.at_once)
        self.room = Room(max(limits.pixels, 1))
        self.lock = threading.RLock()
        self.jobs: set[Job] = set()
        self.running = 0
        self.rates: deque[float] = deque(maxlen=9)  # seconds a pixel, of the last jobs
        self.is_closed = False

    def upscaler(self, sampling: Sampling) -> Upscaler:
        """Load the model to sample so, or take it if that was done; raises as loading does."""
        with self.load_lock:
            return self.load_fn(sampling)

    def warm_up(self) -> None:
        """Compile for small photos, and measure how long one takes."""
        file = BytesIO()
        Image.fromarray(np.zeros((SIZE_MULTIPLE, SIZE_MULTIPLE, 3), np.uint8)).save(file, "png")
        upscaler, start = self.upscaler(AS_TRAINED), 0.0
        for _ in range(2):  # the first of which compiles
            start = time.monotonic()
            upscale_photo(upscaler, file.getvalue())
        self.rates.append((time.monotonic() - start) / SIZE_MULTIPLE**2)

    def measure(self, order: Order) -> tuple[int, int, int]:
        """Tell height and width of an order's result, and how many pixels the model sees.

        Nothing is decoded yet. Raises Refusal for what can't be, or would be too much.
        """
        limits = self.limits
        if len(order.photo) > limits.bytes:
            raise Refusal(413, f"image: more than {limits.bytes:,} bytes; send a smaller file.")
        height, width = measure_photo(order.photo)
        try:
            check_seed(order.seed)
            with_sampling(self.config, order.sampling)
            tall, wide = result_size(height, width, order.wanted)
        except ValueError as error:
            raise Refusal(422, error) from error
        if height * width > limits.pixels:
            raise Refusal(
                413,
                f"image: {width}x{height} are more than {limits.pixels:,} pixels; "
                "send a smaller one.",
            )
        if tall * wide > SCALE**2 * limits.pixels:
            raise Refusal(
                413,
                f"image: a result of {wide}x{tall} has more than {SCALE**2 * limits.pixels:,} "
                "pixels; choose a smaller scale.",
            )
        pixels = padded_side(height) * padded_side(width)
        if runs_twice((height, width), (tall, wide)):  # what comes out goes in once more
            pixels += padded_side(SCALE * height) * padded_side(SCALE * width)
        seconds = self.expect_seconds(pixels)
        if seconds > limits.seconds:
            raise Refusal(
                413,
                f"image: it would take about {seconds:.0f} seconds, more than the "
                f"{limits.seconds:g} of this server; send a smaller one.",
            )
        return tall, wide, pixels

    def expect_seconds(self, pixels: int) -> float:
        """Tell about how long so many pixels take, from what the last jobs took; 0 before any."""
        return pixels * statistics.median(self.rates) if self.rates else 0.0

    def waiting_seconds(self) -> float:
        """Tell about how long all that was taken in still takes."""
        with self.lock:
            pixels = sum((1 - job.share) * job.pixels for job in self.jobs)
        return self.expect_seconds(round(pixels))

    def check_open(self) -> None:
        """Raise Refusal if no job is taken now."""
        if self.is_closed:
            raise Refusal(503, "the server is stopping; ask again in a minute.", 60)
        if len(self.jobs) >= self.at_once + self.limits.queue:
            seconds = max(1, math.ceil(self.waiting_seconds()))
            raise Refusal(429, f"too many photos are waiting; ask again in {seconds} s.", seconds)

    def take(self, order: Order) -> Job:
        """Take in an order; raise Refusal for what can't be done, now or at all."""
        self.check_open()
        tall, wide, pixels = self.measure(order)
        job = Job(order, (tall, wide), pixels, time.monotonic() + self.limits.seconds)
        with self.lock:
            self.check_open()  # others may have come meanwhile
            self.jobs.add(job)
        self.pool.submit(self._run, job)
        return job

    def _run(self, job: Job) -> None:
        try:
            if job.result.set_running_or_notify_cancel():
                job.result.set_result(self._upscale(job))
        except BaseException as error:  # whoever waits for the result is told
            job.result.set_exception(error)
        finally:
            with self.lock:
                self.jobs.remove(job)

    def _upscale(self, job: Job) -> Result:
        order = job.order
        if time.monotonic() > job.deadline:
            raise Refusal(429, "it has waited too long; ask again in a minute.", 60)
        try:
            upscaler = self.upscaler(order.sampling)
            with self.room.hold(min(job.pixels, self.room.pixels)):
                with self.lock:
                    self.running += 1
                start = time.monotonic()
                try:
                    return upscale_photo(
                        upscaler,
                        order.photo,
                        order.wanted,
                        order.seed,
                        uncertainty=order.uncertainty,
                        on_progress=functools.partial(self._on_progress, job),
                    )
                finally:
                    with self.lock:
                        beside, self.running = self.running, self.running - 1
                    if job.share == 1:
                        seconds = (time.monotonic() - start) / beside
                        self.rates.append(seconds / job.pixels)
        except ValueError as error:
            raise Refusal(422, error) from error
        except MemoryError as error:
            sentence = str(error) or "not enough memory"
            raise Refusal(413, f"image: {sentence}; send a smaller one.") from error
        except FloatingPointError as error:
            raise Refusal(500, f"image: {error}") from error

    def _on_progress(self, job: Job, done: int, total: int) -> None:
        job.share = done / total
        if job.is_stopped.is_set():
            raise CancelledError
        if time.monotonic() > job.deadline:
            raise Refusal(
                413,
                f"image: it takes more than the {self.limits.seconds:g} seconds of this server; "
                "send a smaller one.",
            )

    def close(self) -> None:
        """Take no more jobs, and end those that have not started; what runs goes on."""
        self.is_closed = True
        with self.lock:
            jobs = list(self.jobs)
        for job in jobs:
            if job.result.cancel():
                job.is_stopped.set()

    def stop(self) -> None:
        """End all jobs."""
        self.close()
        for job in list(self.jobs):
            job.stop()
        self.pool.shutdown()
