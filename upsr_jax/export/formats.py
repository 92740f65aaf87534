"""Write a trained model, weights and all, as one file that runs without this package.

The file holds one function of pictures of one size: RGB in 0..1, as [1, 3, size, size], to the same
four times as large. Its networks are those that `upscale.restore.make_super_resolve` runs.
"""

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import export
from jaxtyping import Array, Float

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.cluster.devices import local_mesh
from upsr_jax.files.find import check_local
from upsr_jax.files.whole import whole_file
from upsr_jax.models.config import ModelConfig
from upsr_jax.upscale.restore import SIZE_MULTIPLE, make_super_resolve
from upsr_jax.upscale.tiles import SCALE
from upsr_jax.upscale.upscaler import load_whole_model, name_model, with_precision
from upsr_jax.weights.card import read_license

SIZES = range(64, 513, SIZE_MULTIPLE)
OPSET = 20  # The first with Gelu; newer ones are read by fewer programs.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
MOST_DIFFERENCE = 1e-4  # on average; where it is more, something was converted wrongly

Picture = Float[Array, "1 3 h w"]
Noise = Float[Array, "1 3 4*h 4*w"]
Large = Float[Array | np.ndarray, "1 3 4*h 4*w"]


class Written(NamedTuple):
    """What a file holds: its bytes and, of ONNX, how it differs from JAX on a test picture."""

    size: int
    most_difference: float | None = None
    mean_difference: float | None = None


def parse_size(text: str) -> int:
    """Read the side of the pictures that a file is for; raise ValueError if there is none such."""
    choice = f"choose a multiple of {SIZE_MULTIPLE} from {SIZES[0]} to {SIZES[-1]}"
    if text == "dynamic":
        raise ValueError(
            f"--size dynamic can't be had: the networks cut pictures to windows, by numbers that "
            f"have to be known when the file is written. Instead {choice}; programs that cut "
            "pictures to tiles can be set to tiles of that size"
        )
    if not text.isdecimal() or int(text) not in SIZES:
        raise ValueError(f"--size is {text}: {choice}")
    return int(text)


def export_file(
    model: str | Path | None,
    out: Path,
    to: str,
    size: int = 256,
    precision: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a model as an "onnx" or "stablehlo" file, whole or not at all.

    `model` is what `find_model` takes, `size` one of SIZES, and `precision` "float32", "bfloat16"
    or, None, as the model was trained. Raises FileExistsError if `out` exists, unless `overwrite`,
    ValueError for what can't be converted, and OSError.
    """
    check_local(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file, as {out / 'model'}.{to}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: add --overwrite to replace it")
    folder, config, params = load_to_convert(model, to, precision)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out, overwrite) as file:
        if to == "stablehlo":
            data, differences = to_stablehlo(config, params, size), ()
        else:
            data, differences = make_onnx(config, params, size, describe(folder, config, size))
        file.write(data)
    return Written(len(data), *differences)


def load_to_convert(
    model: str | Path | None, to: str, precision: str | None
) -> tuple[Path, ModelConfig, dict[str, Any]]:
    """Load a model as `load_whole_model` does; raise ValueError for a precision that can't be."""
    if precision == "auto":
        raise ValueError("a file has one precision, whatever runs it: choose float32 or bfloat16")
    folder, config, params = load_whole_model(model)
    config = with_precision(config, precision, local_mesh())
    if to != "stablehlo" and config.dtype != "float32":
        raise ValueError(
            f"an ONNX file in {config.dtype} would run almost nowhere: choose --precision float32"
        )
    return folder, config, params


def make_onnx(
    config: ModelConfig, params: Any, size: int, notes: dict[str, str]
) -> tuple[bytes, tuple[float, float]]:
    """Make an ONNX file, and give what `differences_from_jax` does; raise as it and `to_onnx`."""
    data = to_onnx(config, params, size, notes)
    return data, differences_from_jax(data, config, params, size)


def make_picture_function(config: ModelConfig, params: Any) -> Callable[[Picture, Noise], Large]:
    """Build `(image, noise) -> image`: pictures [1, 3, h, w] in 0..1, noise [1, 3, 4h, 4w]."""
    super_resolve = make_super_resolve(config)
    params = jax.tree.map(jnp.asarray, params)

    def upscale(image: Picture, noise: Noise) -> Large:
        lr = 2 * rearrange(image, "b c h w -> b h w c") - 1
        restored = super_resolve(params, lr, rearrange(noise, "b c h w -> b h w c"))
        return rearrange((restored.image + 1) / 2, "b h w c -> b c h w")

    return upscale


def describe(folder: Path, config: ModelConfig, size: int) -> dict[str, str]:
    """Tell what a file was made of, and under which licence it is."""
    notes = {
        "scale": str(SCALE),
        "size": str(size),
        "precision": config.dtype,
        "license": read_license(folder) or "not stated in the model folder",
        "source": f"{folder.resolve().name}, SHA-256 of its sums {name_model(folder)}",
        "made_by": f"upsr_jax {importlib.metadata.version('upsr_jax')}",
    }
    notice = folder / "NOTICE"
    return notes | ({"notice": notice.read_text()} if notice.is_file() else {})


def to_stablehlo(config: ModelConfig, params: Any, size: int) -> bytes:
    """Export the function of pictures by jax.export, for all platforms."""
    # Without options of the compiler: it is that of the process which reads the file.
    function = jax.jit(make_picture_function(config, params), compiler_options=None)
    return bytes(export.export(function, platforms=PLATFORMS)(*_inputs(size)).serialize())


def to_onnx(config: ModelConfig, params: Any, size: int, notes: dict[str, str]) -> bytes:
    """Convert the function of pictures by jax2onnx, with `notes` as its metadata.

    Raises ValueError if jax2onnx is not there, or can't.
    """
    onnx, jax2onnx = onnx_packages()
    upscale = make_picture_function(config, params)
    image, noise = _inputs(size)
    takes_noise = config.network != "estimator"
    if takes_noise and config.sampler["method"] != "one_step":
        raise ValueError(
            "this model is sampled in several steps, a loop that jax2onnx converts wrongly: choose "
            "--to stablehlo"
        )
    try:
        with _quiet():
            model = jax2onnx.to_onnx(
                upscale if takes_noise else lambda image: upscale(image, jnp.zeros(noise.shape)),
                [image, noise][: 1 + takes_noise],
                model_name="upsr",
                opset=OPSET,
                input_names=["image", "noise"][: 1 + takes_noise],
                output_names=["upscaled"],
            )
    except Exception as error:  # of a converter that meets what it doesn't know
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"jax2onnx {importlib.metadata.version('jax2onnx')} with JAX {jax.__version__} can't "
            f"convert this model ({reason}): pip install 'upsr_jax[onnx]' brings versions that can"
        ) from error
    if takes_noise:
        _let_noise_be_zero(onnx, model.graph, noise.shape)
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def differences_from_jax(
    data: bytes, config: ModelConfig, params: Any, size: int
) -> tuple[float, float]:
    """Run an ONNX file and JAX on a picture, and give the largest and the mean difference in 0..1.

    Raises ValueError if the mean is above MOST_DIFFERENCE. The largest may be above it: where
    pixels are sorted by what they are most like, a tie that rounding decides moves some of them.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    generator = np.random.default_rng(0)
    noise = _inputs(size)[1]
    coarse = generator.uniform(0, 1, (1, 3, size // 16, size // 16)).astype(np.float32)
    arrays = {
        "image": coarse.repeat(16, axis=2).repeat(16, axis=3),
        "noise": generator.standard_normal(noise.shape, np.float32),
    }
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    named = [*session.get_inputs(), *session.get_overridable_initializers()]
    found = np.asarray(session.run(None, {each.name: arrays[each.name] for each in named})[0])
    platform = jax.default_backend()
    function = jax.jit(
        make_picture_function(config, params), compiler_options=compiler_options(platform)
    )
    difference = np.abs(found - np.asarray(function(**arrays)))
    most, mean = float(difference.max()), float(difference.mean())
    if not mean < MOST_DIFFERENCE:  # nor is it NaN
        raise ValueError(
            f"jax2onnx converted this model wrongly: its pictures differ from JAX's by {mean:.2g} "
            "on average. Try another version of it"
        )
    return most, mean


def _inputs(size: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Describe picture and noise."""
    image, noise = (1, 3, size, size), (1, 3, SCALE * size, SCALE * size)
    return jax.ShapeDtypeStruct(image, jnp.float32), jax.ShapeDtypeStruct(noise, jnp.float32)


def onnx_packages() -> tuple[Any, Any]:
    """Import what the extra `onnx` brings; raise ValueError if it is not there."""
    try:
        with _quiet():
            import jax2onnx  # pyright: ignore[reportMissingImports]
            import onnx  # pyright: ignore[reportMissingImports]
            import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'upsr_jax[onnx]'") from error
    return onnx, jax2onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what jax2onnx prints, and warns of in parts that are not used here."""
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _let_noise_be_zero(onnx: Any, graph: Any, shape: tuple[int, ...]) -> None:
    """Make the input "noise" optional, with a default of one zero that is spread over `shape`.

    An input with an initializer may be left out; an initializer as large as the noise would make
    the file several times as large.
    """
    whole = "noise_of_all_pixels"
    for node in graph.node:
        node.input[:] = [whole if name == "noise" else name for name in node.input]
    extent = onnx.numpy_helper.from_array(np.array(shape, np.int64), "noise_shape")
    zero = onnx.numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "noise")
    graph.initializer.extend([extent, zero])
    graph.node.insert(0, onnx.helper.make_node("Expand", ["noise", extent.name], [whole]))
    (noise,) = (each for each in graph.input if each.name == "noise")
    names = ("noise_batch", "noise_channels", "noise_height", "noise_width")
    noise.CopyFrom(onnx.helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, names))
