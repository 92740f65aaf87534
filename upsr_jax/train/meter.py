"""Follow a run: losses since the last line of the log, speed, and what the devices do."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np


class Meter:
    """Average what the steps since the last summary gave, and divide the time they took.

    `skipped` counts the steps of the run that changed nothing, `in_row` the last ones of them.

    `flops` is what one step takes all devices together, `peak` what they reach at most, per second;
    without one of them the model FLOP utilization (arXiv 2204.02311, App. B) is left out.
    """

    def __init__(self, batch_size: int, flops: float | None, peak: float | None, skipped: int = 0):
        self.batch_size = batch_size
        self.skipped, self.in_row = skipped, 0
        self.flops, self.peak = flops, peak
        self.restart()

    def restart(self) -> None:
        """Begin the next window."""
        self.steps = 0
        self.terms: list[Mapping[str, np.ndarray]] = []
        self.started = time.perf_counter()
        self.waited = 0.0

    @contextmanager
    def paused(self, really: bool = True) -> Iterator[None]:
        """Leave out the time inside: compilation, evaluation and checkpoints are no training."""
        start = time.perf_counter()
        yield
        self.started += really * (time.perf_counter() - start)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, terms: Mapping[str, np.ndarray]) -> None:
        """Add the terms of one step: means over its batch, scalars or one for each timestep [T].

        NAME_by_t holds the mean over the batch of NAME where the timestep is t and of 0 elsewhere,
        `share_by_t` the share of the batch that has t.
        """
        self.terms.append(terms)
        self.steps += 1
        self.in_row = 0

    def skip(self) -> None:
        """Count a step that changed nothing and whose terms are part of no mean."""
        self.steps += 1
        self.skipped += 1
        self.in_row += 1

    def summary(self) -> dict[str, float]:
        """Return means over the steps, rates over the seconds since the last one, and restart."""
        steps, seconds = self.steps, time.perf_counter() - self.started
        keys = self.terms[0] if self.terms else {}
        means = {key: np.mean([terms[key] for terms in self.terms], 0) for key in keys}
        share = means.pop("share_by_t", np.zeros(0))
        values = {}
        for key, mean in means.items():
            if not key.endswith("_by_t"):
                values[key] = float(mean)
                continue
            for t in np.flatnonzero(share):  # a window of few images may lack a timestep
                values[f"{key.removesuffix('_by_t')}_t{t}"] = float(mean[t] / share[t])
        values["images_per_second"] = steps * self.batch_size / seconds
        values["data_wait_share"] = self.waited / seconds
        values["skipped_steps"] = self.skipped
        if self.flops and self.peak:
            values["model_flop_utilization"] = self.flops * steps / seconds / self.peak
        self.restart()
        return values
