"""Kill a training run again and again, and compare what it gives with an uninterrupted run.

    python scripts/kill_test.py --kills 20 --folder runs/kills -- \
        --config configs/demo.py --config.train.checkpoint_every=2

What stands after `--` goes to `python -m upsr_jax.main`. The run is killed with SIGKILL at random
moments: as it starts, between steps and while it writes checkpoints. All arrays of the last
checkpoint must then be, bit for bit, those of the run that nothing disturbed.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

SAVING = "*orbax-checkpoint-tmp*"
MOMENTS = ["saving", "training", "starting", "saving"]  # first in this order, then at random


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description="Kill a training run again and again")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True, help="of both runs; must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("arguments", nargs="+", help="of upsr_jax.main, after --")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)

    print("uninterrupted ...", flush=True)
    start = time.monotonic()
    reference = Run(options.folder / "uninterrupted", options.arguments)
    reference.finish()
    duration = time.monotonic() - start

    print(f"{duration:.0f} s; with {options.kills} kills ...", flush=True)
    generator = random.Random(options.seed)
    run = Run(options.folder / "killed", options.arguments)
    for number in range(1, options.kills + 1):
        moment = (MOMENTS[number - 1 :] or [generator.choice(MOMENTS)])[0]
        print(f"kill {number:2}: {run.kill(moment, generator, duration)}", flush=True)
    run.finish()
    compare(reference.workdir, run.workdir)
    shutil.rmtree(options.folder)


class Run:
    """A training run that starts again after each kill."""

    def __init__(self, workdir: Path, arguments: list[str]):
        self.workdir = workdir
        self.command = [sys.executable, "-m", "upsr_jax.main", "--workdir", workdir, *arguments]

    def finish(self) -> None:
        """Run to the end; exit with the run's own words if it fails."""
        run = subprocess.run(self.command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"the run ended with {run.returncode}:\n{run.stderr[-4000:]}")

    def kill(self, moment: str, generator: random.Random, duration: float) -> str:
        """Start, kill while "starting", "training" or "saving", and say when that was."""
        steps, before = self.last_step(), self.half_written()
        errors = self.workdir.with_suffix(".log")
        with (
            errors.open("wb") as log,
            subprocess.Popen(self.command, stdout=log, stderr=log) as process,
        ):
            start = time.monotonic()
            if moment == "starting":
                time.sleep(generator.uniform(0, duration / 3))
            while moment != "starting" and process.poll() is None:
                saving = bool(self.half_written() - before)
                if saving if moment == "saving" else self.last_step() > steps:
                    break
                time.sleep(0.002)
            if moment != "starting":
                time.sleep(generator.uniform(0, 1.0 if moment == "training" else 0.2))
            saving = bool(self.half_written() - before)
            process.send_signal(signal.SIGKILL)
        if process.returncode != -signal.SIGKILL:
            sys.exit(
                f"the run ended by itself with {process.returncode}: give it more steps, or see\n"
                + errors.read_text()[-4000:]
            )
        seconds = time.monotonic() - start
        folders = (self.workdir / "checkpoints").glob("*")
        finished = sorted(int(path.name) for path in folders if path.name.isdecimal())
        return (
            f"after {seconds:5.1f} s, step {self.last_step()}, {moment}"
            f"{', a checkpoint half written' if saving else ''}; checkpoints {finished[-2:]}"
        )

    def last_step(self) -> int:
        """Read the last step in the metrics."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return json.loads(whole[-1])["step"] if whole else 0

    def half_written(self) -> set[tuple[str, int]]:
        """Name the checkpoints that are being written, or that a kill has left so."""
        found = set()
        for path in (self.workdir / "checkpoints").glob(SAVING):
            with suppress(FileNotFoundError):  # finished just now
                found.add((path.name, path.stat().st_ino))
        return found


def compare(first: Path, second: Path) -> None:
    """Compare the last checkpoints bit for bit; exit with 1 unless they are the same."""
    import jax
    import numpy as np

    from upsr_jax.train.checkpoints import read_checkpoint

    whole, killed = read_checkpoint(first), read_checkpoint(second)
    leaves = jax.tree.leaves_with_path((whole.state, whole.model))
    pairs = zip(leaves, jax.tree.leaves((killed.state, killed.model)), strict=True)
    different = [jax.tree_util.keystr(path) for (path, x), y in pairs if x.tobytes() != y.tobytes()]
    if whole.step != killed.step or different:
        sys.exit(f"DIFFERENT: steps {whole.step} and {killed.step}, arrays {different[:10]}")
    size = sum(np.size(x) for _, x in leaves)
    print(f"the same: step {whole.step}, {len(leaves)} arrays, {size:,} numbers, bit for bit")


if __name__ == "__main__":
    main()
