"""Measure what a model costs here: one table of times, arithmetic, memory and compilation.

    python scripts/benchmark.py --config realsr_x4
    python scripts/benchmark.py --config lite_x4 --only denoiser,estimator --json before.json
    python scripts/benchmark.py --config lite_x4 --compare before.json

Networks have random weights, which cost what trained ones do. Each row is compiled once, warmed up,
and timed until there are `--repeats` runs and `--seconds` are over. GFLOP are those of products and
convolutions, counted from the program as it is written; "XLA" is what the compiler counts, with all
else. The share is that of the rate at which matrices multiply, in the same precision, right before
and after. Peak memory is that of a program's arguments, results and temporaries. Rows of one run
compare well; another run may have another machine to itself.
"""

import json
from pathlib import Path

import cv2
import jax
from absl import app, flags
from ml_collections import config_flags
from programs import (
    Row,
    cases,
    make_rate_fn,
    measure_calls,
    measure_program,
)

from upsr_jax.cluster.compiler import use_safe_compiler
from upsr_jax.files.config_files import define_config_flag
from upsr_jax.files.whole import write_json

CONFIG = define_config_flag()
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", 64, "Low-resolution pixels a side.", lower_bound=8)
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "Of the networks.")
ONLY = flags.DEFINE_list("only", [], "Begins the names of the rows that are measured; all.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Runs a row, at least.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 5.0, "Seconds a row, at least.", lower_bound=0)
JSON = flags.DEFINE_string("json", None, "File to write the rows to.")
COMPARE = flags.DEFINE_string("compare", None, "File of an earlier run's rows.")

OF_PROGRAMS = (
    "gflop",
    "xla_gflop",
    "share_of_matrix_rate",
    "peak_memory_bytes",
    "compile_seconds",
)


def main(_: list[str]) -> None:
    """Measure each row and print the table as it grows."""
    use_safe_compiler()
    cv2.setNumThreads(1)  # as training does
    before = read_rows(COMPARE.value) if COMPARE.value else {}
    device = jax.devices()[0]
    config_name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    config = CONFIG.value.copy_and_resolve_references()
    config.dtype = PRECISION.value
    print(f"{device.device_kind}, {config_name}, batch {BATCH.value}, {PRECISION.value}\n")
    print(f"{'':24}  seconds  spread    GFLOP      XLA  share    GB  compile  before")
    rows: list[Row] = []
    rate_fn = make_rate_fn(PRECISION.value)
    for name, make, runs_on_device in cases(config, BATCH.value, SIZE.value):
        if ONLY.value and not name.startswith(tuple(ONLY.value)):
            continue
        row = {"name": name, "config": config_name, "batch": BATCH.value, "size": SIZE.value}
        row["precision"] = PRECISION.value
        if runs_on_device:
            function, args = make()
            row |= measure_program(function, args, REPEATS.value, SECONDS.value, rate_fn)
        else:
            row |= dict.fromkeys(OF_PROGRAMS)
            row |= measure_calls(make(), REPEATS.value, SECONDS.value)
        rows.append(row)
        print(line_of(row, before.get(name)), flush=True)
    if JSON.value:
        write_json(Path(JSON.value), rows)


def read_rows(path: str) -> dict[str, Row]:
    """Read an earlier run's rows by their names."""
    return {row["name"]: row for row in json.loads(Path(path).read_text())}


def line_of(row: Row, before: Row | None) -> str:
    """Lay out a row of the table; the last column is the share of the earlier time."""

    def show(name: str, form: str, width: int, unit: float = 1) -> str:
        value = row[name]
        return f"{'' if value is None else format(value / unit, form):>{width}}"

    columns = (
        show("seconds", ".4g", 9),
        show("spread", ".0%", 6),
        show("gflop", ".4g", 7),
        show("xla_gflop", ".4g", 7),
        show("share_of_matrix_rate", ".0%", 5),
        show("peak_memory_bytes", ".2f", 4, 1e9),
        show("compile_seconds", ".1f", 7),
        f"{row['seconds'] / before['seconds']:6.2f}" if before else "",
    )
    return f"{row['name']:24}" + "  ".join(columns)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
