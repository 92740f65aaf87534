import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from programs import cases, count_products

from configs import lite_x4

ROOT = Path(__file__).parent.parent
# What takes long is to compile.
SMALL = ["--config=configs/tiny.py", "--size=16", "--config.estimator.depths=(1,)"]
SMALL += ["--config.model.multipliers=(1,)", "--config.model.num_res_blocks=(1,)"]


def run(*options) -> str:
    command = [sys.executable, "scripts/benchmark.py", *SMALL, "--repeats=1", "--seconds=0"]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_are_written_compared_and_their_arithmetic_is_what_the_compiler_counts(tmp_path):
    file = tmp_path / "rows.json"
    only = "--only=matrix float32,denoiser,estimator,degradation"
    run(only, "--json", file)
    rows = {row["name"]: row for row in json.loads(file.read_text())}
    assert list(rows) == [
        "matrix float32",
        "denoiser",
        "estimator",
        "degradation on the host",
        "degradation on the device",
    ]
    assert all(row["seconds"] > 0 and row["config"] == "tiny" for row in rows.values())
    for name, row in list(rows.items())[:3]:
        assert row["peak_memory_bytes"] > 0 and row["compile_seconds"] > 0
        assert row["share_of_matrix_rate"] > 0
        # The compiler counts what is no product as well, which in networks so small is not little.
        assert 0.95 < row["xla_gflop"] / row["gflop"] < (1.05 if name.startswith("m") else 1.5), (
            name
        )
    *_, head, line = run("--only=matrix float32", "--compare", file).splitlines()
    assert head.endswith("before") and len(line.split()) == len(head.split()) + 2


def test_products_are_counted_wherever_they_stand():
    ones, image, kernel = jnp.ones((8, 8)), jnp.ones((1, 16, 16, 4)), jnp.ones((3, 3, 4, 6))

    def count(function, *args):
        return count_products(jax.make_jaxpr(function)(*args).jaxpr)

    product = 2 * 8**3
    assert count(jnp.matmul, ones, ones) == product
    assert count(jax.jit(lambda x: x @ x @ x), ones) == 2 * product
    assert count(jax.vmap(jnp.matmul), image[..., 0], image[..., 0]) == 2 * 16**3
    assert count(jax.grad(lambda x: (x @ ones @ ones).sum()), ones) == 4 * product
    scan = jax.lax.scan
    assert count(lambda x: scan(lambda y, _: (y @ y, None), x, length=5), ones) == 5 * product

    def conv(x, k, stride=1):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (stride, stride), "SAME", dimension_numbers=names)

    # Of three taps on 16 pixels the first and the last meet padding once; with strides of 2 on 17.
    once = 2 * (3 * 16 - 2) ** 2 * 4 * 6
    assert count(conv, image, kernel) == once
    assert count(lambda x, k: conv(x, k, 2), image, kernel) == 2 * (3 * 8 - 1) ** 2 * 4 * 6
    both = jax.grad(lambda x, k: conv(x, k).sum(), (0, 1))
    assert count(both, image, kernel) == 3 * once


def test_the_arithmetic_of_a_training_step_is_what_is_counted():
    """As the compiler counts it, within 5%: what is neither product nor convolution is little."""
    make = next(
        make for name, make, _ in cases(lite_x4.get_config(), 1, 32) if name == "train step"
    )
    function, args = make()
    traced = jax.jit(function).trace(*args)
    # As for a GPU: the kernels' gradients of CPUs are loops, of which it counts one round.
    costs = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
    assert costs and 0.95 < costs["flops"] / count_products(traced.jaxpr.jaxpr) < 1.05


def run_report(out, *options) -> list[dict]:
    """Run the report and return its rows."""
    command = [sys.executable, "scripts/gpu_report.py", *SMALL]
    options = (*options, "--train=1", "--sample=1", f"--out={out}")
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_a_report_tells_how_exact_the_networks_are_and_runs_a_command_then(tmp_path):
    then = f"--then=touch {tmp_path}/ran"
    *rows, last = run_report(tmp_path, "--only=exact", "--minutes=600", then)
    rows = [row for row in rows if "error" in row]
    assert [row["name"] for row in rows] == ["denoiser", "estimator", "LPIPS"]
    assert all(0 < row["error"] < 1e-4 and row["error_of_gradient"] < 1e-3 for row in rows)
    assert last["part"] == "then" and last["name"] == "ended by itself"
    assert (tmp_path / "ran").exists()
    assert "| LPIPS |" in (tmp_path / "report.md").read_text()


def test_a_report_measures_programs_and_every_convolution(tmp_path):
    matrices, estimator = run_report(tmp_path, "--part=estimator")
    assert matrices["value"] > 0 and estimator["share_of_matrix_rate"] > 0
    rows = [row for row in run_report(tmp_path, "--part=convolutions") if "forward" in row]
    assert all(row[key] > 0 for row in rows for key in ("forward", "of_image", "of_kernel"))
    # The denoiser's first, the estimator's, and one of VGG-16 among them.
    kernels = {row["name"].split(" by ")[1] for row in rows}
    assert {"3x3x144x32", "3x3x3x24", "3x3x256x512"} <= kernels


def test_a_reports_command_may_save_what_it_has(tmp_path):
    program = f"""
import sys
from pathlib import Path
sys.path.append("scripts")
from gpu_report import run_for
trap = "trap 'echo saved > {tmp_path}/saved; exit' TERM; sleep 600 & wait"
print(run_for(["bash", "-c", trap], 4, Path("{tmp_path}/log")))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "ended after 4 s" in done.stdout
    assert (tmp_path / "saved").read_text() == "saved\n"
