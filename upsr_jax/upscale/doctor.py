"""Look over an installation: what it runs on, what it can do, and whether it computes right."""

import importlib.metadata
import io
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from einops import reduce
from jaxtyping import Float, UInt8
from PIL import Image

from upsr_jax.cluster.compiler import FLAG, SAFE_FLAG, compiler_options, wrong_programs
from upsr_jax.files.photos import read_image
from upsr_jax.files.write_photo import FORMATS, write_image
from upsr_jax.upscale.upscaler import Upscaler
from upsr_jax.weights.models import BUILT_IN_MODEL, list_models, models_folder

ASSETS = Path(__file__).parents[1] / "assets"
PHOTO, PLACE = ASSETS / "photos" / "chelsea.png", (slice(90, 154), slice(120, 184))
EXPECTED = ASSETS / "doctor" / "expected.png"
BLOCK = 8  # pixels a side: what is compared are means of blocks
# Of 255. The stored means are rounded, which makes 0.25 and 0.5; arithmetic in bfloat16, the least
# exact that a device may choose, gave 0.25 and 0.58 here, the estimate alone 1.6 and 27.
MEAN_TOLERANCE, MOST_TOLERANCE = 0.5, 4.0
PILLOWS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # as it calls what it reads itself
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow", "safetensors")


class Finding(NamedTuple):
    """One line of the report; `wrong` says what is wrong and how to cure it, "" if nothing."""

    name: str
    text: str
    wrong: str = ""


def examine(programs: Path | None) -> Iterator[Finding]:
    """Yield findings, the quick ones first; `programs` is the folder of compiled programs.

    JAX must have found a device.
    """
    yield Finding("upsr_jax", importlib.metadata.version("upsr_jax"))
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    yield Finding("packages", ", ".join(versions))
    yield Finding("extras", describe_extras())
    yield Finding("devices", describe_devices())
    yield Finding("precision", describe_precision())
    yield examine_cache(programs)
    yield from examine_formats()
    yield examine_models()
    yield examine_compiler()
    yield examine_model()


def describe_extras() -> str:
    """Tell which extras of this package are installed; those for its developers are left out."""
    package = importlib.metadata.metadata("upsr_jax")
    missing: dict[str, set[str]] = {
        extra: set()
        for extra in package.get_all("Provides-Extra") or ()
        if extra not in ("dev", "test") and not extra.startswith("cuda")
    }
    for line in importlib.metadata.requires("upsr_jax") or ():
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"](.+?)['\"]", line)
        if name and extra and extra[1] in missing and not is_installed(name[0]):
            missing[extra[1]].add(name[0])
    return ", ".join(
        f"{extra} (not installed: pip install 'upsr_jax[{extra}]')" if lacking else extra
        for extra, lacking in missing.items()
    )


def is_installed(package: str) -> bool:
    """Tell whether there is a package, without importing it."""
    return next(iter(importlib.metadata.distributions(name=package)), None) is not None


def describe_devices() -> str:
    """Count the devices by what they are."""
    kinds = [f"{device.platform} ({device.device_kind})" for device in jax.devices()]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def describe_precision() -> str:
    """Tell how exact matrix products of float32 are."""
    chosen = jax.config.values["jax_default_matmul_precision"]
    usual = {"cpu": "float32", "gpu": "TF32 where the GPU has it", "tpu": "bfloat16 factors"}
    products = chosen or usual.get(jax.default_backend(), "the device's default")
    return f"float32, its matrix products in {products}"


def examine_cache(programs: Path | None) -> Finding:
    """Measure the folder of compiled programs."""
    if programs is None:
        wrong = "compiled programs are kept nowhere, and every start compiles again: " + (
            "make the folder writable, or set JAX_COMPILATION_CACHE_DIR to one that is"
        )
        return Finding("cache", "none", wrong)
    files = [path for path in programs.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    return Finding("cache", f"{programs}: {len(files)} files of compiled programs, {size:,.1f} MB")


def examine_formats() -> Iterator[Finding]:
    """Read and write a small picture in each format."""
    pixels = np.full((8, 8, 3), 90, np.uint8)

    def read(name: str) -> UInt8[np.ndarray, "h w c"]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name)
        return read_image(file.getvalue())

    yield try_formats("reads", PILLOWS, read, pixels)
    with tempfile.TemporaryDirectory() as folder:

        def write(name: str) -> UInt8[np.ndarray, "h w c"]:
            path = Path(folder, f"picture.{name}")
            write_image(path, pixels)
            return read_image(path)

        yield try_formats("writes", FORMATS, write, pixels)


def try_formats(
    what: str,
    names: Iterable[str],
    copy_fn: Callable[[str], UInt8[np.ndarray, "h w c"]],
    pixels: UInt8[np.ndarray, "h w c"],
) -> Finding:
    """Copy pixels by way of each format, and list those that give them back.

    That an extra of this package is missing, as an error's sentence says, is nothing wrong.
    """
    good, extra, bad = [], [], []
    for name in names:
        try:
            close = np.abs(copy_fn(name).astype(int) - pixels).max() <= 4
            reason = "" if close else "it gives other pixels"
        except Exception as error:  # encoders raise anything, as where one is not built in
            reason = " ".join(str(error).split()) or type(error).__name__
        where = good if not reason else extra if "upsr_jax[" in reason else bad
        where.append(f"{name} ({reason})" if reason else name)
    wrong = f"{what} no {', '.join(bad)}: pip install --force-reinstall pillow" if bad else ""
    without = f"; not {', '.join(extra)}" if extra else ""
    return Finding(what, (", ".join(good) or "nothing") + without, wrong)


def examine_models() -> Finding:
    """Count the models in the user's folder."""
    names = [name for name, folder in list_models() if folder != BUILT_IN_MODEL]
    return Finding("models", f"{models_folder()}: {', '.join(names) or 'none'}")


def examine_compiler() -> Finding:
    """Run the programs that a compiler is known to compute wrong."""
    if jax.default_backend() != "cpu":
        return Finding("compiler", "not XLA's for CPUs, whose faults are known")
    version = importlib.metadata.version("jaxlib")
    wrong = wrong_programs(compiler_options("cpu"))
    if not wrong:
        return Finding("compiler", "computes right what some versions of JAX compute wrong")
    if FLAG in os.environ.get("XLA_FLAGS", ""):
        cure = f"take --{FLAG} out of XLA_FLAGS, or put {SAFE_FLAG} there"
    else:
        cure = f"install a jaxlib that this program knows, or put {SAFE_FLAG} into XLA_FLAGS"
    text = f"jaxlib {version} computes wrong"
    return Finding("compiler", "wrong", f"{text} {'; and '.join(wrong)}: {cure}")


def examine_model() -> Finding:
    """Upscale a piece of a packaged photo with the built-in model, and compare it."""
    start = time.perf_counter()
    try:
        result = Upscaler.from_pretrained()(read_image(PHOTO)[PLACE])
    except (OSError, ValueError, FloatingPointError, MemoryError) as error:
        return Finding("self-test", "failed", f"the built-in model does not run: {error}")
    seconds = time.perf_counter() - start
    difference = np.abs(block_means(result) - np.asarray(Image.open(EXPECTED), np.float64))
    mean, most = float(difference.mean()), float(difference.max())
    text = (
        f"a photo of 64x64 in {seconds:.1f} s, compilation included; {mean:.2f} of 255 from what "
        f"is stored, {most:.1f} at most"
    )
    if mean <= MEAN_TOLERANCE and most <= MOST_TOLERANCE:
        return Finding("self-test", text)
    cure = (
        "install the package and the versions in scripts/constraints.txt anew, and see "
        "whether JAX_PLATFORMS=cpu cures it"
    )
    return Finding("self-test", text, f"the built-in model computes another picture: {cure}")


def block_means(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h2 w2 3"]:
    """Average blocks of BLOCK x BLOCK pixels."""
    means = reduce(image.astype(np.float64), "(h p) (w q) c -> h w c", "mean", p=BLOCK, q=BLOCK)
    return np.asarray(means)
