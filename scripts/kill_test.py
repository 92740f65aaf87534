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
        moment = generator.choice(["starting", "training", "saving", "saving"])
        print(f"kill {number:2}: {run.kill(moment, generator, duration)}", flush=True)
    run.finish()
    compare(reference.workdir, run.workdir)
    shutil.rmtree(options.folder)


class Run:
    """A training run that starts again after each kill."""

    def __init__(self, workdir: Path, arguments: list[str]):
        self.workdir = workdir
        self.started = time.time()
        self.command = [sys.executable, "-m", "upsr_jax.main", "--workdir", workdir, *arguments]

    def finish(self) -> None:
        """Run to the end; exit with the run's own words if it fails."""
        run = subprocess.run(self.command, capture_output=True, text=True)
        if run.returncode:
            sys.exit(f"the run ended with {run.returncode}:\n{run.stderr[-4000:]}")

    def kill(self, moment: str, generator: random.Random, duration: float) -> str:
        """Start, kill while "starting", "training" or "saving", and say when that was."""
        steps, self.started = self.last_step(), time.time()
        with subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            start = time.monotonic()
            if moment == "starting":
                time.sleep(generator.uniform(0, duration / 3))
            else:
                while process.poll() is None and not self.reached(moment, steps):
                    time.sleep(0.002)
                time.sleep(generator.uniform(0, 1.0 if moment == "training" else 0.2))
            saving = self.saving()
            process.send_signal(signal.SIGKILL)
            _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:
            sys.exit(f"the run ended by itself, {process.returncode}; more steps, or:\n{errors}")
        seconds = time.monotonic() - start
        finished = sorted(int(p.name) for p in self.checkpoints() if p.name.isdecimal())
        return (
            f"after {seconds:5.1f} s, step {self.last_step()}, {moment}"
            f"{', a checkpoint half written' if saving else ''}; checkpoints {finished[-2:]}"
        )

    def reached(self, moment: str, steps: int) -> bool:
        """Tell whether the run is where it shall be killed."""
        return self.saving() if moment == "saving" else self.last_step() > steps

    def last_step(self) -> int:
        """Read the last step in the metrics."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return json.loads(whole[-1])["step"] if whole else 0

    def checkpoints(self) -> list[Path]:
        """List what is in the folder of checkpoints."""
        return list((self.workdir / "checkpoints").glob("*"))

    def saving(self) -> bool:
        """Tell whether a checkpoint is being written, not left half written by an earlier kill."""
        for path in (self.workdir / "checkpoints").glob(SAVING):
            with suppress(FileNotFoundError):  # finished just now
                if path.stat().st_mtime > self.started:
                    return True
        return False


def compare(first: Path, second: Path) -> None:
    """Compare the last checkpoints bit for bit; exit with 1 unless they are the same."""
    import jax
    import numpy as np

    from upsr_jax.run_checkpoints import read_checkpoint

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
