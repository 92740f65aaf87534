"""Evaluation measures every image as a loop in NumPy does."""

import dataclasses
import importlib
import itertools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from photos import draw_photo, enlarge, read, save
from scipy.signal import convolve2d
from stand_in import SEED, SIZES, make_noisy_resize, write_set
from tiny_model import changed, random_params

from upsr_jax.data.test_sets import Example, image_seed
from upsr_jax.evaluation.measure import Measured, create_upscaler, restore_all
from upsr_jax.evaluation.metric_list import METRICS, load_pristine_model
from upsr_jax.evaluation.run import evaluate_folders, means_table, summarize
from upsr_jax.evaluation.timing import Timing
from upsr_jax.metrics import psnr_y as psnr_y_of_batch
from upsr_jax.metrics.niqe import niqe
from upsr_jax.models.build import apply
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.lpips import ALEXNET, LPIPS
from upsr_jax.train.config import check_config, eval_settings
from upsr_jax.train.evaluate import evaluate
from upsr_jax.train.loop import create_evaluators
from upsr_jax.train.sharding import create_mesh, make_gather_fn
from upsr_jax.upscale import upscaler as upscaler_module
from upsr_jax.upscale.restore import Sampling
from upsr_jax.upscale.tiles import noise_window
from upsr_jax.weights.model_folder import load_model, save_model
from upsr_jax.weights.published import load_lpips_alex

pytestmark = pytest.mark.usefixtures("no_networks")

CONFIGS = ["imagenet_test", "realsr", "realset65"]


def luma(image):
    return image @ [65.481, 128.553, 24.966] + 16


def psnr_y(image, hr):
    return -10 * np.log10(np.mean((luma(image) - luma(hr)) ** 2) / 255**2 + 1e-8)


def ssim_y(image, hr):
    x, y = np.round(luma(image)), np.round(luma(hr))
    window = np.outer(*[np.exp(-(np.arange(-5, 6) ** 2) / 4.5)] * 2)
    x_mean, y_mean, xx, yy, xy = (
        convolve2d(z, window / window.sum(), "valid") for z in (x, y, x * x, y * y, x * y)
    )
    luminance = (2 * x_mean * y_mean + 6.5025) / (x_mean**2 + y_mean**2 + 6.5025)
    structure = (2 * (xy - x_mean * y_mean) + 58.5225) / (xx - x_mean**2 + yy - y_mean**2 + 58.5225)
    return np.mean(luminance * np.maximum(structure, 0))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ConfigDict:
    return write_set(tmp_path_factory.mktemp("pairs")).lock()


@pytest.fixture(scope="module")
def results(config, workdir) -> dict:
    """The results of an evaluation; its files are in workdir."""
    return evaluate(config, workdir)


def expected_image(config, name: str, seed: int | None = None) -> np.ndarray:
    """What the stand-in makes of an image as a whole, unit, with the noise of a seed or its own."""
    lr = read(f"{config.eval.lr}/{name}.png") / 255
    height, width = (4 * side for side in SIZES[name])
    noise = noise_window(image_seed(SEED, name) if seed is None else seed, 0, 0, height, width)
    return (np.clip(enlarge(2 * lr - 1) + 0.2 * noise, -1, 1) + 1) / 2


def test_every_image_is_measured(config, results):
    lpips = load_lpips_alex()
    for name in SIZES:
        lr, hr = (read(f"{folder}/{name}.png") / 255 for folder in (config.eval.lr, config.eval.gt))
        images = {
            "": expected_image(config, name),
            "bicubic_": (enlarge(2 * lr - 1) * 0.9 + 1) / 2,
        }
        row = results["images"][name]
        for prefix, image in images.items():
            assert row[f"{prefix}psnr_y"] == pytest.approx(psnr_y(image, hr), abs=1e-3)
            assert row[f"{prefix}ssim_y"] == pytest.approx(ssim_y(image, hr), abs=1e-3)
            signed = [jnp.asarray(x[None] * 2 - 1, jnp.float32) for x in (image, hr)]
            distance = float(apply(LPIPS(ALEXNET), lpips, *signed)[0])
            assert row[f"{prefix}lpips_alex"] == pytest.approx(distance, abs=1e-5)
        assert (row["lr"], row["gt"]) == (
            f"{config.eval.lr}/{name}.png",
            f"{config.eval.gt}/{name}.png",
        )


def test_images_and_noise_weights_are_written(config, workdir, results):
    for name in SIZES:
        written = read(workdir / "evaluation" / "images" / f"{name}.png")
        np.testing.assert_allclose(written, 255 * expected_image(config, name), atol=0.51)
        weight = read(workdir / "evaluation" / "uncertainty" / f"{name}.png")
        big = enlarge(read(f"{config.eval.lr}/{name}.png") / 127.5 - 1)
        expected = np.clip(np.abs(big), 0.4, 1).mean(axis=-1)
        np.testing.assert_allclose(weight, 255 * expected, atol=0.51)


def test_means_are_those_of_the_images(results):
    assert list(results["images"]) == list(SIZES)
    assert list(results["metrics"]) == ["psnr_y", "ssim_y", "lpips_alex"]
    for metric, mean in results["means"].items():
        values = [row[metric] for row in results["images"].values()]
        assert mean["mean"] == pytest.approx(np.mean(values))
        assert min(values) <= mean["low"] < mean["mean"] < mean["high"] <= max(values)
        assert mean["images"] == 3


def test_results_and_protocol_are_written(config, workdir, results):
    assert json.loads((workdir / "evaluation" / "results.json").read_text()) == results
    protocol = results["protocol"]
    assert (protocol["images"], protocol["seed"]) == (3, SEED)
    assert protocol["ground truth"] == config.eval.gt
    assert (protocol["sampler"], protocol["steps"]) == ("ddim", 5)
    assert "BT.601" in protocol["psnr_y"] and "443c5bc35326" in protocol["lpips_alex"]
    assert "tiles of 128, stride 64" in protocol["tiling"]


def test_programs_are_compiled_per_shape(results):
    """Networks: 64x64 and tiles of 128x64. Metrics: 32x32, 16x16 and 192x64, in two programs."""
    timing = results["timing"]
    assert timing["compilations"] == 2 + 2 * 3
    assert timing["images"] == 3
    seconds = {key: value for key, value in timing.items() if key.endswith("_seconds")}
    assert seconds.pop("threads_seconds") > 0
    assert all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) <= timing["seconds"] * 1.01
    assert 0 < timing["not_any_network_share"] < timing["not_networks_share"] < 1


def test_the_table_is_printed(config, workdir, results, capsys):
    evaluate(config, workdir)
    lines = capsys.readouterr().out.splitlines()
    assert "seed: 3" in lines
    for line, metric in zip(lines[-7:-4], results["metrics"], strict=True):
        mean, bicubic = results["means"][metric], results["means"][f"bicubic_{metric}"]
        interval = f"{mean['low']:.4f} .. {mean['high']:.4f}"
        assert line.split() == [
            metric,
            f"{bicubic['mean']:.4f}",
            f"{mean['mean']:.4f}",
            *interval.split(),
            "3",
        ]
    timing = results["timing"]  # nothing was left to do, so it is still the first one
    assert lines[-3].startswith(f"3 images in {timing['seconds']:.1f} s")
    assert f"networks {timing['networks_seconds']:.1f}, lpips" in lines[-2]
    assert lines[-1].startswith(f"overhead: {timing['not_any_network_share']:.1%} of the time")


def test_without_ground_truth_no_image_waits_to_be_measured(config):
    """Sizes differ, but not the networks' shape: the first are there before all are drawn."""
    config = changed(config, eval__gt="")
    sides = (9, 20, 40)
    drawn = []

    def examples():
        for size in itertools.product(sides, sides):
            drawn.append(size)
            image = draw_photo(0, *size)
            yield Example(str(size), image, None, "", image)

    timing, settings = Timing(), eval_settings(config)
    upscaler = create_upscaler(ModelConfig.of(config), {}, settings, "", timing)
    first = next(restore_all(upscaler, lambda example: example, examples(), settings, timing))
    assert isinstance(first, Measured)
    assert first.restored.image.shape == (36, 36, 3)
    assert len(drawn) < 9


def test_a_model_that_gives_nan_is_reported(config, tmp_path, monkeypatch):
    def make_nan(config, fidelity):
        restore = make_noisy_resize(config)
        return lambda *inputs: restore(*inputs)._replace(image=jnp.nan * restore(*inputs).image)

    monkeypatch.setattr(upscaler_module, "make_super_resolve", make_nan)
    results = evaluate(changed(config, eval__metrics=("psnr_y",), eval__max_images=1), tmp_path)
    assert results["broken"] == {
        "a/x": "the model gave NaN or infinity in the tile at row 0, column 0; its weights may be "
        "damaged."
    }
    assert results["means"] == {} and results["metrics"] == {}


def exhaust(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


def exhaust_by_tiles(config, fidelity):
    restore = make_noisy_resize(config)
    return lambda params, lr, noise: (exhaust if lr.shape[1] > 64 else restore)(params, lr, noise)


def exhaust_by_canvases(images, truths, sizes):
    return exhaust() if images.shape[1] > 4 * 64 else psnr_y_of_batch(images, truths, sizes)


@pytest.mark.parametrize(
    ("name", "function", "reason"),
    [
        ("make_super_resolve", exhaust_by_tiles, "2 tiles of 64x128 do not fit into the device's"),
        ("psnr_y", exhaust_by_canvases, "metrics of 2 images of 64x192 do not fit into"),
    ],
)
def test_an_image_that_memory_can_not_hold_is_reported(
    config, tmp_path, monkeypatch, capsys, name, function, reason
):
    if name == "psnr_y":
        metric = METRICS[name]._replace(make=lambda: ({}, lambda _, *inputs: function(*inputs)))
        monkeypatch.setitem(METRICS, name, metric)
    else:
        monkeypatch.setattr(upscaler_module, name, function)
    config = changed(config, eval__metrics=("psnr_y",))
    results = evaluate(config, tmp_path)
    assert list(results["images"]) == ["a/x", "b/x"]
    assert list(results["broken"]) == ["large"]
    assert results["broken"]["large"].startswith(reason)
    assert capsys.readouterr().err.count("large is broken: ") == 1
    config.train.keep_best = ""
    gather_fn = make_gather_fn(create_mesh(-1, 1))
    with pytest.raises(MemoryError, match=reason):  # training does not go on without a metric
        create_evaluators(config, gather_fn)[0][""](random_params(config), lambda: False)


def test_fewer_images_than_there_are_is_said(config, tmp_path, results, capsys):
    evaluate(changed(config, eval__metrics=("psnr_y",), eval__max_images=2), tmp_path)
    assert "taken: 2 of 3 images (config.eval.max_images)" in capsys.readouterr().out.splitlines()
    assert "taken" not in results["protocol"]


def test_results_name_files_so_that_they_are_found_from_anywhere(config, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(config.eval.lr).parent)
    pairs = changed(config, eval__metrics=("psnr_y",), eval__lr="lq", eval__gt="gt")
    pairs.eval.max_images = 1
    row = evaluate(pairs, tmp_path)["images"]["a/x"]
    assert (row["lr"], row["gt"]) == (f"{config.eval.lr}/a/x.png", f"{config.eval.gt}/a/x.png")


def test_a_model_of_another_diffusion_is_refused(config, tmp_path):
    other = changed(config, diffusion__kappa=1.25)
    with pytest.raises(
        ValueError, match=r"model has another config\.diffusion: kappa 2.* of 1\.25$"
    ):
        evaluate(other, tmp_path)


def test_a_model_that_learned_another_sampling_is_refused(config, tmp_path):
    stored, params = load_model(config.eval.model)
    stored = dataclasses.replace(stored, sampler={"method": "one_step", "steps": 1})
    save_model(tmp_path / "one_step", stored, params)
    one_step = changed(config, eval__model=str(tmp_path / "one_step"))
    with pytest.raises(ValueError, match="one_step was trained to restore in one step and has not"):
        evaluate(one_step, tmp_path)
    other = changed(config, prior__un=0.2)
    with pytest.raises(ValueError, match=r"prior\.un = 0\.1, not 0\.2: set it so"):
        evaluate(other, tmp_path)


def test_pairs_may_be_named_and_cut_as_data_sets_have_them(config, tmp_path):
    """As RealSR names them in one folder, and BSD100 has sides that are no multiples of 4."""
    for name in SIZES:
        lr, hr = (read(f"{folder}/{name}.png") for folder in (config.eval.lr, config.eval.gt))
        save(tmp_path / "set" / f"{name}_LR4.png", lr)
        save(tmp_path / "set" / f"{name}_HR.png", np.pad(hr, ((0, 3), (0, 1), (0, 0))))
    both = str(tmp_path / "set")
    config = changed(config, eval__metrics=("psnr_y",), eval__noise_by_name=False)
    plain = evaluate(config, tmp_path / "plain")
    odd = evaluate(changed(config, eval__gt=both, eval__lr=both), tmp_path / "odd")
    for name in SIZES:
        for key in ("psnr_y", "bicubic_psnr_y"):
            assert odd["images"][f"{name}_LR4"][key] == plain["images"][name][key]
    assert odd["protocol"]["pairs"] == "matched by how their names end, as x_HR.png and x_LR4.png"
    assert "pairs" not in plain["protocol"]
    assert odd["protocol"]["cut"].startswith("up to 3 pixels at right and bottom of a ground")


def test_a_mean_over_equal_pictures_says_how_many_they_are():
    row = {"lr": None, "gt": None, "sha256": "1"}
    rows = {
        "a": {"name": "a", "psnr_y": 30.0, "bicubic_psnr_y": 80.0, **row},
        "b": {"name": "b", "psnr_y": 79.99999, "bicubic_psnr_y": 79.99999, **row},
        "c": {"name": "c", "psnr_y": None, "bicubic_psnr_y": None, **row},
    }
    results = summarize({}, ["psnr_y"], rows)
    found = {key: (mean["images"], mean["capped"]) for key, mean in results["means"].items()}
    assert found == {"psnr_y": (2, 1), "bicubic_psnr_y": (2, 2)}
    _, line, about = means_table(results).splitlines()
    assert line.endswith("   2 of 3, 1 capped, 2 capped of bicubic") and "80 dB are taken" in about


def test_results_go_where_they_are_wanted(config, tmp_path):
    config = changed(config, eval__metrics=("psnr_y",), eval__max_images=1)
    evaluate(config, tmp_path / "run", tmp_path / "a")
    assert (tmp_path / "a" / "results.json").exists() and not (tmp_path / "run").exists()


def test_without_ground_truth_what_needs_none_is_measured(config, tmp_path, monkeypatch):
    model, lr = config.eval.model, config.eval.lr
    results = evaluate_folders(model, lr, None, tmp_path / "out", seed=SEED)
    assert list(results["metrics"]) == ["niqe"]
    expected = niqe(expected_image(config, "large", SEED), load_pristine_model())
    assert results["images"]["large"]["niqe"] == pytest.approx(expected, rel=1e-4)
    row = results["images"]["a/x"]
    assert (row["niqe"], row["lr"], row["gt"]) == (None, f"{lr}/a/x.png", None)
    assert results["means"]["niqe"]["images"] == 1
    with pytest.raises(ValueError, match="tile is 100, but must be a multiple of 64 above"):
        evaluate_folders(model, lr, None, tmp_path / "other", tile=100)
    with pytest.raises(ValueError, match=r"psnr_y can't be measured without .* choose of niqe"):
        evaluate_folders(model, lr, None, tmp_path / "other", metrics=("psnr_y",))


def test_sampling_options_reach_the_sampler(config, tmp_path, monkeypatch):
    seen = {}

    def make_seen(config, fidelity):
        seen.update(config.sampler, min_noise=config.prior["min_noise"], fidelity=fidelity)
        return make_noisy_resize(config)

    monkeypatch.setattr(upscaler_module, "make_super_resolve", make_seen)
    sampling = Sampling(steps=2, method="ancestral", min_noise=0.5, fidelity=0.25)
    folders = config.eval.model, config.eval.lr, None, tmp_path / "out"
    protocol = evaluate_folders(*folders, sampling=sampling)["protocol"]
    assert seen == dataclasses.asdict(sampling)
    assert (protocol["sampler"], protocol["steps"]) == ("ancestral", 2)
    assert protocol["spacing"] == "released"
    assert (protocol["min_noise"], protocol["fidelity"]) == (0.5, 0.25)


@pytest.fixture
def types(monkeypatch) -> list[str]:
    """The types of arithmetic in which networks are made from here on."""
    made = []

    def make_seen(config, fidelity):
        made.append(config.dtype)
        return make_noisy_resize(config)

    monkeypatch.setattr(upscaler_module, "make_super_resolve", make_seen)
    return made


def test_device_and_precision_are_those_asked_for_and_the_folder_knows(config, tmp_path, types):
    folders = config.eval.model, config.eval.lr, config.eval.gt
    run = partial(evaluate_folders, *folders, seed=SEED, metrics=("psnr_y",))
    short = run(tmp_path / "out", device="cpu:0", precision="bfloat16")
    assert types == ["bfloat16"]
    assert short["protocol"]["arithmetic"].startswith("bfloat16 on cpu, default precision")
    assert short["timing"]["devices"] == 1
    before = (tmp_path / "out" / "results.json").read_bytes()
    with pytest.raises(ValueError, match="begun with dtype = 'bfloat16', and this would be 'float"):
        run(tmp_path / "out")
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    with pytest.raises(ValueError, match="there is no device 'gpu:1': choose cpu, or"):
        run(tmp_path / "out", device="gpu:1")
    with pytest.raises(ValueError, match="precision is 'half': choose one of float32"):
        run(tmp_path / "other", precision="half")
    assert not (tmp_path / "other").exists()


def test_a_folder_from_before_precision_could_be_chosen_goes_on(config, workdir, results):
    """What its options are has not changed."""
    options = json.loads((workdir / "evaluation" / "options.json").read_text())
    assert (options["dtype"], options["precision"]) == ("float32", "default")
    assert (options["sampler"], options["steps"]) == ("ddim", 5)
    assert "spacing" not in options and "spacing" not in results["protocol"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_trained_is_evaluated_in_the_precision_of_the_config(
    config, tmp_path, types, precision
):
    trained = changed(config, dtype="bfloat16", eval__metrics=("psnr_y",), eval__max_images=1)
    trained.train.keep_best = ""
    trained.eval.precision = precision
    protocol = evaluate(trained, tmp_path)["protocol"]
    create_evaluators(trained, make_gather_fn(create_mesh(-1, 1)))
    assert types == [precision] * 2
    assert protocol["arithmetic"].startswith(f"{precision} on ")


def test_the_evaluator_of_training_gives_the_same_numbers(config, results):
    evaluator = create_evaluators(config, make_gather_fn(create_mesh(-1, 1)))[0][""]
    report = evaluator(random_params(config), lambda: False)
    assert report
    for name, row in report.rows.items():
        assert row == pytest.approx({key: results["images"][name][key] for key in row}, rel=1e-5)
    for metric, mean in report.means.items():
        assert mean == pytest.approx(results["means"][metric]["mean"], rel=1e-5)
    assert report.picture.shape == (80 + 64, 6 * 96, 3)
    lr, hr = (read(f"{folder}/a/x.png") for folder in (config.eval.lr, config.eval.gt))
    panels = np.split(report.picture[:80], 6, axis=1)
    np.testing.assert_array_equal(panels[0], enlarge(lr))
    np.testing.assert_allclose(panels[1], (enlarge(lr) - 127.5) * 0.9 + 127.5, atol=0.51)
    np.testing.assert_allclose(panels[2], (enlarge(lr) - 127.5) * 0.8 + 127.5, atol=0.51)
    np.testing.assert_array_equal(panels[5], hr)
    assert (report.picture[80:, 6 * 64 :] == 255).all()


def test_a_run_without_a_model_says_so(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints: give the --workdir of"):
        evaluate(changed(config, eval__model=""), tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_missing_set_is_named_with_where_to_get_it(name, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"configs.eval.{name}")
    whole = module.get_config()
    check_config(whole)
    tiny_networks = changed(config)
    tiny_networks.eval.update(whole.eval)  # no model is there either
    missing = whole.eval.gt or whole.eval.lr
    with pytest.raises(FileNotFoundError) as info:
        evaluate(tiny_networks, tmp_path)
    assert str(tmp_path / missing) in str(info.value)
    assert "http" in str(info.value) and missing.split("/")[1] in whole.eval.source


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_images=0), "max_images is 0: it must be at least 1"),
        (dict(per_device_batch=0), "per_device_batch is 0: it must be at least 1"),
        (dict(tile=100), "tile is 100, but must be a multiple of 64 above the overlap, 64"),
        (dict(overlap=512), "tile is 128, but must be a multiple of 64 above the overlap, 512"),
        (dict(blend="max"), "blend is 'max': it must be one of feather, mean"),
        (dict(metrics=("psnr",)), r"metrics is \('psnr',\): it must be some of psnr_y, ssim_y"),
        (dict(metrics=()), r"metrics is \(\): it must be some of"),
    ],
)
def test_settings_that_can_not_be_are_refused(config, settings, message):
    ((key, value),) = settings.items()
    with pytest.raises(ValueError, match=message):
        check_config(changed(config, **{f"eval__{key}": value}))
