"""Tell what an evaluation's time goes into: seconds of its programs, and compilations."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from upsr_jax.cluster.devices import SPLIT, split_rows

PARTS = ("setup", "compile", "move", "networks", "lpips", "metrics")


class Timing:
    """Seconds by what they went into, since it was made; images restored, programs compiled."""

    def __init__(self):
        self.started = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.images = 0
        self.compilations = 0
        self.threads_lock = threading.Lock()
        self.devices_lock = threading.Lock()  # one program at a time, so that seconds add up

    @contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Count the time inside under a name, of which only one thread at a time may be."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Count the processor time that another thread takes inside."""
        start = time.thread_time()
        try:
            yield
        finally:
            with self.threads_lock:
                self.seconds["threads"] += time.thread_time() - start

    def summary(self) -> dict[str, float | int]:
        """List seconds, and shares of the time without loading and compiling.

        `not_networks_share` is what goes into anything but the model's networks;
        `not_any_network_share` leaves out those of LPIPS too, and so is what reading, moving,
        writing and waiting cost. `threads_seconds` of a processor were taken beside the devices'
        programs by decoding, NIQE and encoding: where cores are few, networks run longer for them.
        """
        total = time.perf_counter() - self.started
        running = max(total - self.seconds["setup"] - self.seconds["compile"], 1e-9)
        networks, lpips = self.seconds["networks"], self.seconds["lpips"]
        return {
            "images": self.images,
            "seconds": total,
            **{f"{part}_seconds": self.seconds[part] for part in (*PARTS, "threads")},
            "not_networks_share": 1 - networks / running,
            "not_any_network_share": 1 - (networks + lpips) / running,
            "images_per_second": self.images / running,
            "compilations": self.compilations,
        }


def timing_lines(timing: Mapping[str, float | int]) -> str:
    """Lay out a summary in lines of text."""
    parts = ", ".join(f"{part} {timing[f'{part}_seconds']:.1f}" for part in PARTS)
    return (
        f"{timing['images']} images in {timing['seconds']:.1f} s, "
        f"{timing['images_per_second']:.3g} a second without setup and compiling, "
        f"{timing['compilations']} programs compiled\n"
        f"seconds: {parts}; beside them threads {timing['threads_seconds']:.1f}\n"
        f"overhead: {timing['not_any_network_share']:.1%} of the time without setup and compiling "
        "went into neither the networks nor LPIPS"
    )


def make_program(
    function: Callable[[Any, Any], Any], mesh: Mesh, timing: Timing, name: str
) -> Callable[[Any, Any], Any]:
    """Build `(params, batch) -> results` from a function of the same arguments.

    `batch` is a tree of NumPy arrays [rows, ...], split as `split_rows` does, and so are the
    results. Threads that call it take turns. The time goes to `name` and "compile" of `timing`.
    """
    jitted = split_rows(function, mesh)
    compiled = {}  # by hand, to know when and how often

    def run(params: Any, batch: Any) -> Any:
        with timing.devices_lock:
            with timing.spent("move"):
                batch = jax.device_put(batch, NamedSharding(mesh, SPLIT))
            shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
            if shapes not in compiled:
                with timing.spent("compile"):
                    compiled[shapes] = jitted.lower(params, batch).compile()
                timing.compilations += 1
            with timing.spent(name):
                results = jax.block_until_ready(compiled[shapes](params, batch))
            with timing.spent("move"):
                return jax.device_get(results)

    return run
