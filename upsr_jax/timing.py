"""Tell what an evaluation's time goes into: seconds of the main thread, and compilations."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Timing:
    """Seconds by what they went into, since it was made, and how often a program was compiled."""

    def __init__(self):
        self.started = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.compilations = 0

    @contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Count the time inside under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def summary(self, images: int) -> dict[str, float | int]:
        """List seconds, and shares of the time without loading and compiling.

        `not_networks_share` is what goes into anything but the model's networks;
        `not_any_network_share` leaves out those of LPIPS too, and so is what reading, moving,
        writing and waiting cost.
        """
        total = time.perf_counter() - self.started
        running = max(total - self.seconds["setup"] - self.seconds["compile"], 1e-9)
        networks, lpips = self.seconds["networks"], self.seconds["lpips"]
        parts = ("setup", "compile", "read", "move", "networks", "lpips", "metrics", "write")
        return {
            "images": images,
            "seconds": total,
            **{f"{part}_seconds": self.seconds[part] for part in parts},
            "not_networks_share": 1 - networks / running,
            "not_any_network_share": 1 - (networks + lpips) / running,
            "images_per_second": images / running,
            "compilations": self.compilations,
        }
