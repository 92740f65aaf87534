"""Measure this project on an accelerator in a few minutes, the most valuable things first.

    python scripts/gpu_report.py --config realsr_x4 --minutes 9 --out report

Each part runs in a process of its own, which is ended when its share of the time is over, and
writes a line to OUT/rows.jsonl with every number it has; OUT/report.md is written anew after each
part. With --then, a command gets the rest of the time, and a SIGTERM a minute before its end: for
instance a training run, which then saves a checkpoint. Where PyTorch is installed, its convolutions
are timed beside JAX's.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from benchmark import CONFIG, ONLY, SIZE
from jax import lax
from jax.extend import core
from ml_collections import ConfigDict
from programs import (
    Row,
    cases,
    compile_program,
    draw,
    inner_programs,
    make_rate_fn,
    measure_calls,
    shape_of,
    time_program,
)

from upsr_jax.cluster.compiler import use_safe_compiler
from upsr_jax.models.atd import ATD
from upsr_jax.models.lpips import LPIPS
from upsr_jax.models.swin_unet import SwinUNet

OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
MINUTES = flags.DEFINE_float("minutes", 9.0, "Time for all.", lower_bound=0)
TRAIN = flags.DEFINE_list("train", ["16", "32", "64", "8"], "Batch sizes of training.")
SAMPLE = flags.DEFINE_list("sample", ["32", "1", "64", "8"], "Batch sizes of sampling.")
THEN = flags.DEFINE_string("then", None, "Command that gets the rest of the time.")
PART = flags.DEFINE_string("part", None, "Run this part alone, in this process.")

Timed = tuple[Row, int, Callable[[], Any]]  # names, images, what makes function and arguments

AT_ONCE = 4  # programs that are compiled side by side
SECONDS = 1.0  # that each program is timed for, at least
LAST_MINUTE = 60.0  # of a command's time: to save what it has
CONVOLUTIONS = 8  # images at once


class Conv(NamedTuple):
    """A convolution of a program, NHWC and HWIO."""

    image: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


def main(_: Any) -> None:
    """Run the parts one after the other, or one of them."""
    if PART.value:
        run_part(PART.value)
        return
    begin, whole = time.monotonic(), 60 * MINUTES.value
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name, (_, share) in PARTS.items():
        if ONLY.value and not name.startswith(tuple(ONLY.value)):
            continue
        command = [sys.executable, __file__, *sys.argv[1:], f"--part={name}"]
        failed = run_for(command, share * whole, out / f"{name}.log")
        if failed:
            write_row(out, {"part": name, "name": failed})
        write_report(out)
    left = whole - (time.monotonic() - begin)
    if THEN.value and left > 0:
        failed = run_for(["bash", "-c", f"exec {THEN.value}"], left, out / "then.log")
        write_row(out, {"part": "then", "name": failed or "ended by itself", "seconds": left})
        write_report(out)


def run_for(command: list[str], seconds: float, log: Path) -> str:
    """Run a command for at most so long; returns what went wrong, or nothing.

    It gets a SIGTERM before the time is over, a minute or a quarter of it, to save what it has.
    """
    grace = min(LAST_MINUTE, seconds / 4)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        code = process.wait(seconds - grace)
        return f"failed, exit {code}: see {log.name}" if code else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        return f"ended after {seconds:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_part(name: str) -> None:
    """Run a part and write its rows as they come."""
    use_safe_compiler()
    config = CONFIG.value.copy_and_resolve_references()
    measure, _ = PARTS[name]
    for row in measure(config):
        write_row(Path(OUT.value), {"part": name} | row)


def write_row(out: Path, row: Row) -> None:
    """Append a row; it is on the disk when this returns."""
    with (out / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_report(out: Path) -> None:
    """Lay the rows out as tables, one a part."""
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    text = ["# Report", ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        keys = [key for key in dict.fromkeys(key for row in mine for key in row) if key != "part"]
        text += [f"## {part}", "", "| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
        for row in mine:
            values = (row.get(key, "") for key in keys)
            shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
            text.append("| " + " | ".join(shown) + " |")
        text.append("")
    (out / "report.md").write_text("\n".join(text))


def exact(config: ConfigDict) -> Iterator[Row]:
    """Compare the networks here with themselves in float64 on the host, which tests compare.

    Weights are random everywhere, as those that start at zero would hide what they multiply.
    """
    device, size = jax.devices()[0], SIZE.value
    yield {"name": "device", "value": device.device_kind, "jax": jax.__version__}
    rng = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, (1, *shape)).astype(np.float32)

    condition = (np.full(1, 3, np.int32), images(size, size, 96))
    small = images(size, size, 3) / 2 + 0.5
    pair = images(2 * size, 2 * size, 3), images(2 * size, 2 * size, 3)
    networks = {
        "denoiser": (SwinUNet(**config.model), (images(size, size, 48), *condition)),
        "estimator": (ATD(**config.estimator), (small,)),
        "LPIPS": (LPIPS(), pair),
    }
    for name, (network, inputs) in networks.items():
        params = jax.device_get(draw(network.init, *inputs)["params"])

        def loss(params: Any, inputs: Any, network: Any = network) -> tuple[jax.Array, Any]:
            result = network.apply({"params": params}, *inputs)
            return jnp.mean(result**2), result

        program = jax.value_and_grad(loss, has_aux=True)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            wide = jax.tree.map(
                lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, (params, inputs)
            )
            (_, right), right_gradient = jax.jit(program)(*wide)
            expected = jax.device_get((right, right_gradient))
        # A CPU knows one way to multiply float32.
        for precision in ("highest", "default")[: 1 + (device.platform != "cpu")]:
            with jax.default_matmul_precision(precision):
                (_, found), gradient = jax.jit(program)(params, inputs)
            yield {
                "name": name,
                "precision": f"float32, {precision}",
                "error": error_of(found, expected[0]),
                "error_of_gradient": error_of(gradient, expected[1]),
            }


def error_of(found: Any, expected: Any) -> float:
    """Return the norm of the difference of two trees as a share of the second one's norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    squares = [(np.sum((np.asarray(a, np.float64) - b) ** 2), np.sum(b**2)) for a, b in pairs]
    return float(np.sqrt(sum(a for a, _ in squares) / sum(b for _, b in squares)))


def training(config: ConfigDict) -> Iterator[Row]:
    """Time training steps: batch sizes, what is computed again, levels of optimization."""
    yield from with_rate(config, train_programs(config))


def train_programs(config: ConfigDict) -> Iterator[Timed]:
    """List the programs of `training`, each with its name and images."""
    first, *others = map(int, TRAIN.value)
    own = config.train.remat
    settings = [(batch, own, "usual") for batch in (first, *others)]
    settings += [(first, remat, "usual") for remat in ("none", "selective", "full") if remat != own]
    settings += [(first, own, level) for level in ("O1", "O2", "O3")]
    for batch, remat, level in settings:
        changed = config.copy_and_resolve_references()
        changed.train.remat = remat
        name = {"name": "train step", "batch": batch, "remat": remat, "optimization": level}
        yield name, batch, make_of(changed, batch, "train step")


def at_batches(name: str, config: ConfigDict) -> Iterator[Row]:
    """Time a program of `programs.cases` at the batch sizes of sampling."""
    programs = (
        ({"name": name, "batch": batch}, batch, make_of(config, batch, name))
        for batch in map(int, SAMPLE.value)
    )
    yield from with_rate(config, programs)


def degradation(config: ConfigDict) -> Iterator[Row]:
    """Time degradation, as training does it."""
    batch = int(TRAIN.value[0])
    for name, make, is_program in cases(config, batch, SIZE.value):
        if name.startswith("degradation"):
            if is_program:
                yield from with_rate(config, [({"name": name, "batch": batch}, batch, make)])
            else:
                yield {"name": name, "batch": 1} | measure_calls(make(), 3, SECONDS)


def make_of(config: ConfigDict, batch: int, name: str) -> Callable[[], Any]:
    """Return what makes a program of `benchmark.cases`."""
    return next(make for found, make, _ in cases(config, batch, SIZE.value) if found == name)


def with_rate(config: ConfigDict, programs: Iterable[Timed]) -> Iterator[Row]:
    """Time programs, and tell what share each reaches of the rate at which matrices multiply here.

    One that needs too much memory gets a row that says so.
    """
    rate_fn = make_rate_fn(config.dtype)
    yield {"name": f"products of matrices in {config.dtype}, GFLOP a second", "value": rate_fn()}
    for level, group in itertools.groupby(programs, lambda one: one[0].get("optimization")):
        usual = level in (None, "usual")
        jax.config.update("jax_optimization_level", "UNKNOWN" if usual else level)
        for name, images, row in compile_and_time(group, SECONDS, rate_fn):
            if "seconds" in row:
                row["images_per_second"] = images / row["seconds"]
            yield name | row


def compile_and_time(
    timed: Iterable[Timed], seconds: float, rate_fn: Callable[[], float]
) -> Iterator[tuple[Row, int, Row]]:
    """Compile programs, a few at once, and time them one by one, while nothing else runs."""

    def compiled(make: Callable[[], Any]) -> Any:
        try:
            function, args = make()
            return *compile_program(function, args), args
        except jax.errors.JaxRuntimeError as error:
            return error

    timed = iter(timed)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(itertools.islice(timed, AT_ONCE)):
            results = list(pool.map(compiled, [make for _, _, make in some]))
            for i, (name, images, _) in enumerate(some):
                result, results[i] = results[i], None  # its arguments are given back, then
                try:
                    if isinstance(result, Exception):
                        raise result
                    program, row, args = result
                    row |= time_program(program, args, row["gflop"], 3, seconds, rate_fn)
                except jax.errors.JaxRuntimeError as error:
                    row = {"failed": str(error).partition("\n")[0][:120]}
                yield name, images, row


def convolutions(config: ConfigDict) -> Iterator[Row]:
    """Time every convolution of the networks, forward and both gradients, here and in PyTorch."""
    found: Counter[Conv] = Counter()
    for name in ("denoiser", "estimator"):
        function, args = make_of(config, CONVOLUTIONS, name)()
        found += convolutions_in(jax.make_jaxpr(function)(*args).jaxpr)
    image = jax.ShapeDtypeStruct((CONVOLUTIONS, 4 * SIZE.value, 4 * SIZE.value, 3), config.dtype)
    lpips = LPIPS(dtype=config.dtype)
    program = jax.make_jaxpr(lambda x: lpips.init_with_output(jax.random.key(0), x, x)[0])(image)
    found += convolutions_in(program.jaxpr)
    in_torch = torch_convolution if importlib.util.find_spec("torch") else None
    for conv, times in sorted(found.items(), key=lambda item: -item[1] * flops_of(item[0])):
        row = {
            "name": f"{'x'.join(map(str, conv.image))} by {'x'.join(map(str, conv.kernel))}",
            "strides": conv.strides[0],
            "times": times,
            "gflop": flops_of(conv) / 1e9,
        }
        programs = conv_programs(conv, config.dtype)
        timed = [({"is": name}, 1, lambda made=made: made) for name, made in programs.items()]
        for name, _, found_row in compile_and_time(timed, 0.1, lambda: 1.0):
            row[name["is"]] = found_row.get("seconds", found_row.get("failed"))
        yield row | (in_torch(conv, config.dtype) if in_torch else {})


def convolutions_in(jaxpr: core.Jaxpr) -> Counter[Conv]:
    """Count the convolutions of a program; one in a loop counts once."""
    found: Counter[Conv] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            params = equation.params
            image, kernel = map(shape_of, equation.invars)
            found[Conv(image, kernel, params["window_strides"], params["padding"])] += 1
        for inner in inner_programs(equation.params):
            found += convolutions_in(inner)
    return found


def flops_of(conv: Conv) -> float:
    """Count the FLOPs of a convolution: two a multiplication."""
    sides = (
        (side + sum(pad) - kernel) // stride + 1
        for side, pad, kernel, stride in zip(
            conv.image[1:3], conv.padding, conv.kernel, conv.strides, strict=False
        )
    )
    height, width = sides
    return 2.0 * conv.image[0] * height * width * float(np.prod(conv.kernel))


def conv_programs(conv: Conv, dtype: str) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Build the programs of a convolution: itself, and the gradients of image and of kernel."""

    def forward(image: jax.Array, kernel: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            image, kernel, conv.strides, conv.padding, dimension_numbers=names
        )

    image, kernel = jnp.ones(conv.image, dtype), jnp.ones(conv.kernel, dtype)
    gradient = jnp.ones(jax.eval_shape(forward, image, kernel).shape, dtype)
    return {
        "forward": (forward, (image, kernel)),
        "of_image": (
            lambda kernel, g: jax.vjp(lambda x: forward(x, kernel), jnp.zeros_like(image))[1](g),
            (kernel, gradient),
        ),
        "of_kernel": (
            lambda image, g: jax.vjp(lambda k: forward(image, k), jnp.zeros_like(kernel))[1](g),
            (image, gradient),
        ),
    }


def torch_convolution(conv: Conv, dtype: str) -> Row:
    """Time the same in PyTorch, channels last, with the algorithm that is fastest."""
    import torch  # pyright: ignore[reportMissingImports]

    if any(low != high for low, high in conv.padding):
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    to = {"device": device, "dtype": getattr(torch, dtype), "memory_format": torch.channels_last}
    height, width, channels, features = conv.kernel
    batch, rows, columns, _ = conv.image
    image = torch.ones(batch, channels, rows, columns).to(**to)
    kernel = torch.ones(features, channels, height, width).to(**to)
    strides, padding = list(conv.strides), [low for low, _ in conv.padding]
    forward = partial(torch.nn.functional.conv2d, image, kernel, None, strides, padding)
    gradient = torch.ones_like(forward())
    backward = partial(
        torch.ops.aten.convolution_backward,
        *(gradient, image, kernel, None, strides, padding, [1, 1], False, [0, 0], 1),
    )

    def wait(call: Callable[[], Any]) -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    calls = {
        "torch_forward": forward,
        "torch_of_image": partial(backward, [True, False, False]),
        "torch_of_kernel": partial(backward, [False, True, False]),
    }
    return {
        name: measure_calls(partial(wait, call), 3, 0.1)["seconds"] for name, call in calls.items()
    }


# Each with the most of all the time that it gets. What it leaves goes to the command at the end.
PARTS: dict[str, tuple[Callable[[ConfigDict], Iterator[Row]], float]] = {
    "exact": (exact, 0.12),
    "training": (training, 0.3),
    "sampling": (partial(at_batches, "restoration"), 0.15),
    "convolutions": (convolutions, 0.15),
    "estimator": (partial(at_batches, "estimator"), 0.08),
    "degradation": (degradation, 0.08),
}


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
