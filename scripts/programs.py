"""What benchmarks measure: programs of a model, their arithmetic and their times."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.data.degradation.host import degrade
from upsr_jax.data.degradation.poisson import packed_tables
from upsr_jax.models.build import (
    apply,
    create_denoiser,
    create_estimator,
    init_denoiser,
    init_estimator,
)
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.lpips import LPIPS
from upsr_jax.train.degradation import make_degrade_fn
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.sharding import create_mesh
from upsr_jax.train.state import create_state
from upsr_jax.train.step import make_loss_fn, make_train_step
from upsr_jax.upscale.photo import upscale_photo
from upsr_jax.upscale.restore import make_super_resolve
from upsr_jax.upscale.upscaler import Upscaler

MATRIX, COPY = 2048, 2**26  # side of the matrices, floats copied
PHOTO = 512  # pixels a side of the photo that is upscaled from file to file

Row = dict[str, Any]


def cases(
    config: ConfigDict, batch: int, size: int
) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    """List what is measured: names, what makes the program or the call, and which of these it is.

    A program comes as a function of arrays and its arguments; of a call a result is waited for.
    `size` is the side of the `batch` low-resolution images; config.dtype is that of the networks.
    """
    key = jax.random.key(0)
    model = ModelConfig.of(config)
    lr, hr = (random_images(batch, side) for side in (size, 4 * size))
    dtype = jnp.dtype(config.dtype)

    def params() -> dict[str, Any]:
        found = {"estimator": draw(partial(init_estimator, config=config.estimator))}
        if config.network == "denoiser":
            found["denoiser"] = draw(partial(init_denoiser, config=config.model))
        return found

    def denoiser() -> Any:
        network = create_denoiser(model)
        x_t, condition = (jnp.ones((batch, size, size, c), dtype) for c in (48, 96))
        args = params()["denoiser"], x_t, jnp.full(batch, 99), condition
        return lambda p, *inputs: apply(network, p, *inputs), args

    def estimator() -> Any:
        network = create_estimator(model)
        return lambda p, x: apply(network, p, x), (params()["estimator"], (lr + 1) / 2)

    def restoration() -> Any:
        return make_super_resolve(model), (params(), lr, jax.random.normal(key, hr.shape))

    def train_step(lpips_weight: float) -> Callable[[], Any]:
        def make() -> Any:
            config.loss.lpips_weight = lpips_weight
            optimizer = create_optimizer(create_schedule(**config.schedule), **config.optimizer)
            found = params()
            state = create_state(found.pop(config.network), optimizer)
            if lpips_weight:
                found["lpips"] = draw(LPIPS().init, hr, hr)["params"]
            if config.pretrained.teacher:
                found["teacher"] = params()["denoiser"]
            step = make_train_step(
                make_loss_fn(config, config.train.remat),
                optimizer,
                config.train.ema_decay,
                seed=0,
                microbatches=1,
                mesh=create_mesh(-1, 1),
            )
            return step, (state, found, {"lr": lr, "hr": hr, "stop": jnp.zeros(batch, bool)})

        return make

    def on_host() -> Callable[[], Any]:
        rng = np.random.default_rng(0)
        crop = rng.integers(0, 256, (config.data.crop_size, config.data.crop_size, 3), np.uint8)
        return lambda: degrade(rng, crop, **config.degradation)

    def on_device() -> Any:
        side = config.data.crop_size
        crops = jax.random.randint(key, (batch, side, side, 3), 0, 256).astype(jnp.uint8)
        place = jnp.stack([jnp.zeros(batch, int), jnp.arange(batch)], axis=1)
        rows = {"hr": crops, "place": place}
        return make_degrade_fn(config, create_mesh(-1, 1)), (jnp.asarray(packed_tables()), rows)

    def photo() -> Callable[[], Any]:
        noise = np.random.default_rng(0).integers(0, 256, (PHOTO // 8, PHOTO // 8, 3), np.uint8)
        png = cv2.imencode(".png", cv2.resize(noise, (PHOTO, PHOTO)))[1].tobytes()
        upscaler = Upscaler.from_params(model, jax.device_get(params()), "benchmark")
        upscale_photo(upscaler, png)  # compiles
        return lambda: upscale_photo(upscaler, png)

    yield "matrix float32", partial(matrix_product, "float32"), True
    yield "matrix bfloat16", partial(matrix_product, "bfloat16"), True
    yield "copy", lambda: (lambda x: x + 1, (jnp.ones(COPY),)), True
    if config.network == "denoiser":
        yield "denoiser", denoiser, True
    yield "estimator", estimator, True
    yield "restoration", restoration, True
    yield "train step", train_step(config.loss.lpips_weight or 1.0), True
    yield "train step, no LPIPS", train_step(0.0), True
    yield "degradation on the host", on_host, False
    yield "degradation on the device", on_device, True
    yield f"photo of {PHOTO}x{PHOTO}", photo, False


def draw(init_fn: Callable[..., Any], *inputs: Any) -> Any:
    """Draw params of a network by their shapes, which compiles nothing; none of them is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init_fn, jax.random.key(0), *inputs)

    def draw_leaf(leaf: Any) -> jax.Array:
        spread = np.float32(0.5 * leaf.size**-0.25)
        return jnp.asarray(spread * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(draw_leaf, shapes)


def random_images(batch: int, side: int) -> jax.Array:
    """Draw signed images [batch, side, side, 3]."""
    return jax.random.uniform(jax.random.key(side), (batch, side, side, 3), minval=-1.0)


def measure_program(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    repeats: int,
    seconds: float,
    rate_fn: Callable[[], float],
) -> Row:
    """Compile a function of arrays, and time it as `measure_calls` does."""
    program, row = compile_program(function, args)
    return row | time_program(program, args, row["gflop"], repeats, seconds, rate_fn)


def time_program(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    gflop: float,
    repeats: int,
    seconds: float,
    rate_fn: Callable[[], float],
) -> Row:
    """Time a compiled program and say what share it is of the rate, measured before and after."""
    before = rate_fn()
    row = measure_calls(lambda: jax.block_until_ready(program(*args)), repeats, seconds)
    rate = (before + rate_fn()) / 2
    return row | {"share_of_matrix_rate": gflop / row["seconds"] / rate}


def matrix_product(dtype: str) -> tuple[Callable[..., Any], tuple[jax.Array, jax.Array]]:
    """Give the product of two square matrices, as a program and its arguments."""
    side = MATRIX if jax.default_backend() == "cpu" else 4 * MATRIX
    ones = jnp.ones((side, side), dtype)
    return jnp.matmul, (ones, ones)


def make_rate_fn(dtype: str) -> Callable[[], float]:
    """Return what measures how many GFLOP a second products of matrices make here, now."""
    function, args = matrix_product(dtype)
    program, row = compile_program(function, args)

    def rate() -> float:
        times = measure_calls(lambda: jax.block_until_ready(program(*args)), 3, 0.0)
        return row["gflop"] / times["seconds"]

    return rate


def compile_program(
    function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Callable[..., Any], Row]:
    """Compile a function of arrays; returns it and what is known of it before it runs."""
    options = compiler_options(jax.default_backend())
    start = time.perf_counter()
    traced = jax.jit(function, compiler_options=options).trace(*args)
    program = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return program, {
        "gflop": count_products(traced.jaxpr.jaxpr) / 1e9,
        "xla_gflop": (program.cost_analysis() or {}).get("flops", 0) / 1e9,
        "peak_memory_bytes": sum(getattr(memory, part) for part in parts) if memory else None,
        "compile_seconds": compile_seconds,
    }


def measure_calls(call: Callable[[], Any], repeats: int, seconds: float) -> Row:
    """Time a call: median and the range that the middle half of the runs lies in, as its share.

    There are at least so many `repeats`, after a first one that isn't timed, and so many `seconds`.
    """
    call()
    times: list[float] = []
    while len(times) < repeats or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    low, high = np.quantile(times, (0.25, 0.75))
    return {"seconds": median, "spread": float(high - low) / median, "runs": len(times)}


def count_products(jaxpr: core.Jaxpr) -> float:
    """Count the FLOPs of all products and convolutions in a program: two a multiplication.

    Those of loops count as often as they run; of branches the costliest counts.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
            total += 2 * math.prod(left[axis] for axis in contracted) * math.prod(out)
        elif name == "conv_general_dilated":
            (image, kernel), numbers = map(shape_of, equation.invars), params["dimension_numbers"]
            taps = [
                count_taps(image[numbers.lhs_spec[2 + i]], kernel[axis], *window)
                for i, (axis, window) in enumerate(
                    zip(numbers.rhs_spec[2:], windows_of(params), strict=True)
                )
            ]
            features, channels = (kernel[axis] for axis in numbers.rhs_spec[:2])
            images = image[numbers.lhs_spec[0]] / params["batch_group_count"]
            total += 2 * images * math.prod(taps) * features * channels
        else:
            inner = [count_products(each) for each in inner_programs(params)]
            times = params["length"] if name == "scan" else 1
            total += times * (max(inner, default=0.0) if name == "cond" else sum(inner))
    return total


def windows_of(params: dict[str, Any]) -> Iterator[tuple[int, int, int, int, int]]:
    """List for each axis of a convolution its stride, padding, and dilation of image and kernel."""
    keys = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    for stride, (low, high), spread, gap in zip(*(params[key] for key in keys), strict=True):
        yield stride, low, high, spread, gap


def count_taps(
    length: int, kernel: int, stride: int, low: int, high: int, spread: int, gap: int
) -> int:
    """Count the pairs of a pixel and an element of the kernel that meet along an axis.

    What meets padding, or zeros that dilation puts between pixels, costs nothing that counts.
    """
    last = spread * (length - 1)
    outputs = (last + low + high - gap * (kernel - 1)) // stride + 1
    places = stride * np.arange(outputs)[:, None] + gap * np.arange(kernel)[None] - low
    return int(np.sum((places >= 0) & (places <= last) & (places % spread == 0)))


def shape_of(variable: Any) -> tuple[int, ...]:
    """Give the shape of a variable of a program."""
    return variable.aval.shape


def inner_programs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """List the programs that an operation runs."""
    for value in itertools.chain.from_iterable(
        each if isinstance(each, tuple | list) else [each] for each in params.values()
    ):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
