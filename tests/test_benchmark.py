import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))


def run(*options) -> str:
    command = [sys.executable, "scripts/benchmark.py", "--config=configs/tiny.py", "--repeats=1"]
    options = ("--size=16", "--seconds=0", *options)
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
    table = run("--only=matrix float32", "--compare", file)
    assert len(table.splitlines()[-1].split()) > len(
        run("--only=matrix float32").split("\n")[-2].split()
    )


def test_products_are_counted_wherever_they_stand():
    from benchmark import count_products  # pyright: ignore[reportMissingImports]

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

    once = 2 * 16 * 16 * 9 * 4 * 6
    assert count(conv, image, kernel) == once
    assert count(lambda x, k: conv(x, k, 2), image, kernel) == once / 4
    for stride in (1, 2):
        both = jax.grad(lambda x, k: conv(x, k, stride).sum(), (0, 1))  # noqa: B023
        assert count(both, image, kernel) == pytest.approx(3 * once / stride**2, rel=0.2)
