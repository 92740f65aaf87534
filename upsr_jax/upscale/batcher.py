"""Run tiles that several threads hand in, in batches of one size."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import numpy as np
from jaxtyping import Float32, Shaped


class TileBatcher:
    """Gather tiles from threads and run them `size` at once, all of one shape.

    `run(lr, noise)` takes the stacked arrays of a batch and returns its results. It is called by
    whichever waiting thread finds the device free, and takes the tiles that are there by then, of
    any thread. So the device never idles until a batch is full, and while it is busy the next batch
    fills.
    """

    def __init__(self, run: Callable[[np.ndarray, np.ndarray], np.ndarray], size: int):
        self.run = run
        self.size = size
        self.pending: dict[tuple[int, ...], deque[tuple[np.ndarray, np.ndarray, Future]]] = {}
        self.pending_lock = threading.Lock()
        self.device_lock = threading.Lock()
        self.stopped = False

    def submit(
        self, lr: Shaped[np.ndarray, "h w 3"], noise: Float32[np.ndarray, "H W 3"]
    ) -> Future:
        """Hand in a tile; `wait` for its result."""
        future = Future()
        with self.pending_lock:
            self.pending.setdefault(lr.shape, deque()).append((lr, noise, future))
        return future

    def wait(self, future: Future) -> np.ndarray:
        """Return the result of a tile; raise what running its batch raised, or CancelledError."""
        while not future.done():
            with self.device_lock:
                if self.stopped:
                    raise CancelledError
                if not future.done():
                    self._run_fullest()
        return future.result()

    def stop(self) -> None:
        """End all waiting, now and later, with CancelledError."""
        self.stopped = True

    def _run_fullest(self) -> None:
        with self.pending_lock:
            tiles = max(self.pending.values(), key=len)
            batch = [tiles.popleft() for _ in range(min(len(tiles), self.size))]
        full = batch + batch[-1:] * (self.size - len(batch))  # so that no other shape is compiled
        futures = [future for *_, future in batch]
        try:
            results = self.run(
                np.stack([lr for lr, *_ in full]), np.stack([noise for _, noise, _ in full])
            )
        except BaseException as error:
            for future in futures:
                future.set_exception(error)
            if isinstance(error, Exception):
                return
            raise
        for future, result in zip(futures, results, strict=False):
            future.set_result(result)
