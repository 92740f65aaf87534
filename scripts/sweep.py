"""Run a table of ablations: each row is trained, evaluated, and written into OUT/table.md.

python scripts/sweep.py --out runs/ablations --config released_x4 \
    --config.pretrained.estimator=runs/estimator_x4/model

All further flags are those of `upsr_jax.main`, for every row. The same command goes on where it
was ended and skips rows that are done. In a SLURM array every task does one row, by its number.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from upsr_jax.files.whole import write_json, write_whole

# Of each row, what it changes. docs/ablations.md says what that is.
ROWS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "no_weighting": ("prior.un=0.0",),
    "psi_max_0.05": ("prior.un=0.05",),
    "psi_max_0.2": ("prior.un=0.2",),
    "b_u_0.2": ("prior.min_noise=0.2",),
    "b_u_0.7": ("prior.min_noise=0.7",),
    "steps_3": ("diffusion.steps=3", "sampler.steps=3"),
    "steps_10": ("diffusion.steps=10", "sampler.steps=10"),
    "one_step": ("sampler.method=one_step",),
    "kappa_1": ("diffusion.kappa=1.0",),
    "kappa_5": ("diffusion.kappa=5.0",),
    "no_lpips": ("loss.lpips_weight=0.0",),
    "no_estimate_in_condition": ("prior.condition=bicubic",),
    "no_estimator": ("prior.estimate=bicubic",),
    "residual": ("model.residual=True",),
}
# What the model of the first row is evaluated with, too.
AT_TEST: dict[str, tuple[str, ...]] = {
    "b_u_0.2_at_test": ("prior.min_noise=0.2",),
    "b_u_0.7_at_test": ("prior.min_noise=0.7",),
    "1_step_at_test": ("sampler.steps=1",),
    "3_steps_at_test": ("sampler.steps=3",),
}


def main() -> None:
    """Do the rows that are asked for, one after the other, and write the table."""
    parser = argparse.ArgumentParser(
        description=str(__doc__).partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows and the table")
    parser.add_argument("--rows", help="names, with commas between; all by default")
    parser.add_argument(
        "--estimator", type=Path, action="append", default=[], metavar="FOLDER",
        help="a model folder whose estimator makes a row of its own; may be given again",
    )  # fmt: skip
    options, flags = parser.parse_known_args()
    try:
        rows = ROWS | {f"estimator_{path.name}": of_estimator(path) for path in options.estimator}
        for name in choose(options.rows, rows):
            do_row(options.out / name, rows[name], AT_TEST if name == "baseline" else {}, flags)
            if is_main():
                text = table(options.out, rows)
                write_whole(options.out / "table.md", text.encode())
                print(text)
    except (OSError, ValueError) as error:
        fail(str(error))


def choose(names: str | None, rows: Mapping[str, Any]) -> list[str]:
    """Return the rows to do: those named, that of this task of a SLURM array, or all."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    chosen = names.split(",") if names else [*rows]
    for name in chosen:
        if name not in rows:
            raise ValueError(f"there is no row {name}: choose some of {', '.join(rows)}")
    if task is None:
        return chosen
    if int(task) >= len(chosen):
        raise ValueError(f"task {task} has no row: give sbatch --array=0-{len(chosen) - 1}")
    return [chosen[int(task)]]


def of_estimator(folder: Path) -> tuple[str, ...]:
    """Return what changes for the estimator of a model folder, whose sizes may be others."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give --estimator a model folder")
    sizes = json.loads(path.read_text()).get("estimator")
    if not sizes:
        raise ValueError(f"{folder} holds no estimator")
    texts = {key: tuple(x) if isinstance(x, list) else x for key, x in sizes.items()}
    return (
        f"pretrained.estimator={folder}",
        *(f"estimator.{key}={value}" for key, value in texts.items()),
    )


def do_row(
    folder: Path,
    changes: Sequence[str],
    at_test: Mapping[str, Sequence[str]],
    flags: Sequence[str],
) -> None:
    """Train and evaluate a row, unless `folder/row.json` says that it is done.

    Raises ValueError if that was done with other flags.
    """
    done = folder / "row.json"
    wanted = {
        "flags": [*flags],
        "changes": [*changes],
        "at_test": {k: [*v] for k, v in at_test.items()},
    }
    if done.exists():
        found = json.loads(done.read_text())
        if {key: found[key] for key in wanted} != wanted:
            raise ValueError(f"{folder} was done with other flags: choose another --out")
        return
    own = [*flags, f"--workdir={folder}", *as_flags(changes)]
    # Rows have most of their programs in common.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((folder.parent / "compiled").absolute()))
    call_main(own)
    if not (folder / "finished").exists():
        stop(f"{folder.name} was stopped after a checkpoint: the same command goes on from there")
    means = {}
    for name, more in {"": (), **at_test}.items():
        out = folder / f"evaluation_{name}".rstrip("_")
        call_main([*own, *as_flags(more), "--mode=evaluate", f"--out={out}"])
        means[name] = {
            metric: values["mean"]
            for metric, values in json.loads((out / "results.json").read_text())["means"].items()
        }
    if is_main():
        write_json(done, wanted | {"means": means})


def as_flags(changes: Sequence[str]) -> list[str]:
    """Turn "prior.un=0.0" into a flag of `upsr_jax.main`."""
    return [f"--config.{change}" for change in changes]


def call_main(flags: Sequence[str]) -> None:
    """Run `upsr_jax.main`, which is told of what ends this program, and end with it if it fails."""
    child = subprocess.Popen([sys.executable, "-m", "upsr_jax.main", *flags])
    ended = []

    def pass_on(number: int, frame: Any) -> None:
        ended.append(number)
        child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended:
        stop("stopped: the same command goes on from there")
    if status:
        fail(f"python -m upsr_jax.main {' '.join(flags)} failed, as it says above")


def table(out: Path, rows: Mapping[str, Sequence[str]]) -> str:
    """Lay out what is done so far as a Markdown table, a line for each row and evaluation."""
    lines, metrics = [], []
    for name, changes in rows.items():
        path = out / name / "row.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        for variant, means in found["means"].items():
            metrics = metrics or [metric for metric in means if not metric.startswith("bicubic_")]
            what = " ".join([*changes, *found["at_test"].get(variant, ())])
            values = [f"{means[m]:.4f}" if m in means else "" for m in metrics]
            lines.append([variant or name, f"`{what}`" if what else "", *values])
    head = ["row", "config", *metrics]
    rows_of_text = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows_of_text)


def is_main() -> bool:
    """Tell whether this is the first of the processes that do a row together under srun."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def stop(sentence: str) -> NoReturn:
    """End as training does when it is told to."""
    print(f"sweep: {sentence}", file=sys.stderr)
    sys.exit(0)


def fail(sentence: str) -> NoReturn:
    """End with one sentence."""
    sys.exit(f"sweep: {sentence}")


if __name__ == "__main__":
    main()
