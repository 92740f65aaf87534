"""Scores by an installed pyiqa, of metrics that need no weights."""

import numpy as np
import pytest
from evaluation_folder import write_evaluation
from typer.testing import CliRunner

from upsr_jax.cli import app
from upsr_jax.evaluation.pyiqa_scores import score
from upsr_jax.files.write_photo import write_image

pytestmark = pytest.mark.filterwarnings("default")  # pyiqa and its packages are not ours


def test_psnr_and_piqe_of_written_images(tmp_path):
    write_evaluation(tmp_path, {"a": {"niqe": 5.0}})
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 200, (64, 64, 3), np.uint8)
    for folder, image in (("gt", truth), ("images", truth + np.uint8(10))):
        write_image(tmp_path / folder / "a.png", image, overwrite=True)
    results = score(tmp_path, ["psnr", "piqe"])
    # All pixels are 10 of 255 off.
    assert results["means"]["pyiqa:psnr"]["mean"] == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert results["metrics"] == {"niqe": False, "pyiqa:psnr": True, "pyiqa:piqe": False}
    assert 0 <= results["images"]["a"]["pyiqa:piqe"] <= 100


def test_the_command_names_a_metric_that_does_not_exist(tmp_path):
    write_evaluation(tmp_path, {"a": {"niqe": 5.0}})
    result = CliRunner().invoke(app, ["score", str(tmp_path), "beauty"])
    assert result.exit_code == 2 and "pyiqa can't make the metric 'beauty'" in result.stderr
