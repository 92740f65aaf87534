"""Metrics of pyiqa on saved results, with a stand-in for it; test_pyiqa.py takes the real one."""

import importlib.metadata
import json
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_folder import write_evaluation
from photos import photo

from upsr_jax.evaluation.pyiqa_scores import make_host_metrics, measure_by, score, with_scores
from upsr_jax.evaluation.report import compare
from upsr_jax.files.photos import read_image
from upsr_jax.files.write_photo import write_image

IMAGES = {"a": {"psnr_y": 30.0}, "b/c": {"psnr_y": 20.0}}


class Metric:
    """Give each file a number by its name, as pyiqa's metrics give arrays of one."""

    def __init__(self, values, mode):
        self.values, self.metric_mode, self.lower_better = values, mode, mode == "FR"
        self.calls, self.pictures = [], []

    def __call__(self, *files):
        self.calls.append(files)
        self.pictures += [read_image(file) for file in files[1:]]
        value = self.values[files[0].rpartition("/images/")[2]]
        if value is None:
            raise RuntimeError("too\nsmall")
        return np.array(value)


@pytest.fixture
def pyiqa(monkeypatch):
    """Install a stand-in with the metrics of `module.metrics`."""
    metrics = {"musiq": Metric({"a.png": 60.0, "b/c.png": 40.0}, "NR")}
    module = SimpleNamespace(metrics=metrics)

    def create_metric(name, device="any"):
        module.device = device
        assert name in module.metrics, f"Metric {name}\nnot implemented yet."
        return module.metrics[name]

    module.create_metric = create_metric
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    return module


def test_a_score_becomes_a_column_of_the_results_and_the_report(tmp_path, pyiqa):
    write_evaluation(tmp_path, IMAGES)
    results = score(tmp_path, ["musiq"])
    assert [row["pyiqa:musiq"] for row in results["images"].values()] == [60.0, 40.0]
    assert results["means"]["pyiqa:musiq"]["mean"] == 50.0
    assert results["protocol"]["pyiqa:musiq"] == "pyiqa 1.0, torch 1.0, on the written images"
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert "| MUSIQ (pyiqa) ↑ | – | 50.000 |" in (tmp_path / "results.md").read_text()
    assert pyiqa.metrics["musiq"].calls[0] == (str(tmp_path / "images" / "a.png"),)
    write_evaluation(tmp_path / "other", IMAGES, pictures=False)
    assert "MUSIQ (pyiqa) ↑" in compare([tmp_path / "other", tmp_path], tmp_path)


def test_a_metric_that_compares_gets_the_ground_truth(tmp_path, pyiqa):
    pyiqa.metrics["dists"] = metric = Metric({"a.png": 0.25, "b/c.png": 0.5}, "FR")
    write_evaluation(tmp_path, IMAGES)
    assert score(tmp_path, ["dists"])["metrics"]["pyiqa:dists"] is False
    assert metric.calls[0] == (f"{tmp_path}/images/a.png", f"{tmp_path}/gt/a.png")
    file = tmp_path / "results.json"
    results = json.loads(file.read_text())
    results["images"]["a"]["gt"] = None
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="dists compares with a ground truth"):
        score(tmp_path, ["dists"])


def test_where_it_was_degraded_the_centre_of_the_ground_truth_is_compared(tmp_path, pyiqa):
    pyiqa.metrics["dists"] = metric = Metric({"a.png": 0.25}, "FR")
    write_evaluation(tmp_path, {"a": IMAGES["a"]})
    file = tmp_path / "results.json"
    results = json.loads(file.read_text())
    results["images"]["a"]["lr"] = None
    file.write_text(json.dumps(results))
    whole = photo(71, 80)
    write_image(tmp_path / "gt" / "a.png", whole, overwrite=True)
    score(tmp_path, ["dists"])
    np.testing.assert_array_equal(metric.pictures, [whole[3:67, 8:72]])


def test_scores_are_kept_and_only_missing_ones_are_measured(tmp_path, pyiqa):
    metric = pyiqa.metrics["musiq"]
    write_evaluation(tmp_path, {"a": IMAGES["a"]})
    score(tmp_path, ["musiq"])
    # Writes results without scores, as an evaluation does.
    write_evaluation(tmp_path, IMAGES, pictures=False)
    kept = with_scores(json.loads((tmp_path / "results.json").read_text()), tmp_path)
    assert kept["means"]["pyiqa:musiq"]["images"] == 1
    score(tmp_path, ["musiq"])
    assert len(metric.calls) == 2 and metric.calls[1][0].endswith("b/c.png")


def test_the_score_of_an_image_that_changed_is_measured_again(tmp_path, pyiqa):
    write_evaluation(tmp_path, IMAGES)
    score(tmp_path, ["musiq"])
    file = tmp_path / "results.json"
    results = json.loads(file.read_text())
    results["images"]["a"]["sha256"] = "2"
    file.write_text(json.dumps(results))
    assert with_scores(results, tmp_path)["images"]["a"]["pyiqa:musiq"] is None
    pyiqa.metrics["musiq"].values["a.png"] = 50.0
    assert score(tmp_path, ["musiq"])["means"]["pyiqa:musiq"]["mean"] == 45.0
    assert len(pyiqa.metrics["musiq"].calls) == 3


def test_another_version_measures_all_again(tmp_path, pyiqa, monkeypatch):
    write_evaluation(tmp_path, IMAGES)
    score(tmp_path, ["musiq"])
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.0")
    score(tmp_path, ["musiq"])
    assert len(pyiqa.metrics["musiq"].calls) == 4


def test_an_image_that_cannot_be_measured_is_named_and_counted(tmp_path, pyiqa, capsys):
    pyiqa.metrics["musiq"].values["a.png"] = None
    write_evaluation(tmp_path, IMAGES)
    results = score(tmp_path, ["musiq"])
    assert "musiq can't measure a: RuntimeError: too small" in "".join(capsys.readouterr())
    assert results["means"]["pyiqa:musiq"]["images"] == 1
    assert "| 40.000 |  | [40.000, 40.000] | 1 of 2 |" in (tmp_path / "results.md").read_text()


def test_in_training_pictures_are_measured_as_they_would_be_written(pyiqa, capsys):
    pyiqa.metrics["musiq"] = metric = Metric({}, "NR")
    metric.values = defaultdict(lambda: 7.0)
    metrics = make_host_metrics(["musiq"])
    assert metrics["pyiqa:musiq"][1] is True and pyiqa.device == "cpu"
    functions = {key: function for key, (function, _) in metrics.items()}
    functions["pyiqa:broken"] = lambda file: 1 / 0
    seen = []
    functions["pyiqa:seen"] = lambda file: seen.append(read_image(file)) or 1.0
    image = np.linspace(-1, 1, 48, dtype=np.float32).reshape(4, 4, 3)
    values = measure_by(functions, "a", image)
    assert values["pyiqa:musiq"] == 7.0 and np.isnan(values["pyiqa:broken"])
    assert "pyiqa:broken can't measure a: ZeroDivisionError" in "".join(capsys.readouterr())
    np.testing.assert_allclose(seen[0], (image + 1) * 127.5, atol=0.51)
    pyiqa.metrics["dists"] = Metric({}, "FR")
    with pytest.raises(ValueError, match="has dists, which compares with a ground truth"):
        make_host_metrics(["dists"])


@pytest.mark.parametrize("damaged", ["{", "[1]", '{"musiq": 3}', '{"musiq": {"values": {}}}'])
def test_damaged_scores_are_named(tmp_path, pyiqa, damaged):
    write_evaluation(tmp_path, IMAGES, pictures=False)
    (tmp_path / "scores.json").write_text(damaged)
    with pytest.raises(ValueError, match=r"scores\.json: damaged; remove it and score again"):
        score(tmp_path, ["musiq"])


def test_without_pyiqa_or_such_a_metric(tmp_path, pyiqa, monkeypatch):
    write_evaluation(tmp_path, IMAGES, pictures=False)
    with pytest.raises(ValueError, match=r"make the metric 'beauty' .* implemented yet"):
        score(tmp_path, ["beauty"])
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match="pip install pyiqa"):
        score(tmp_path, ["musiq"])
    with pytest.raises(ValueError, match=r"no results\.json"):
        score(tmp_path / "nothing", ["musiq"])
