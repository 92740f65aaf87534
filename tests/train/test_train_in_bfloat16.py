"""The script's loss and gradient are the package's; conftest.py leaves it out without PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest
import torch  # pyright: ignore[reportMissingImports]
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from photos import write_photos
from tiny_model import random_params

from configs import lite_x4
from scripts import train_in_bfloat16 as script
from upsr_jax.losses import draw_moves
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.loop import train_and_evaluate
from upsr_jax.train.step import make_loss_fn
from upsr_jax.weights.model_folder import load_model, save_model
from upsr_jax.weights.published import load_lpips_vgg


def small_config() -> ConfigDict:
    """Return a config of the built-in model's kind with both kinds of Swin blocks and skips."""
    config = lite_x4.get_config()
    config.model.update(width=32, swin_embed_dim=32, swin_head_dim=16, head_width=8)
    config.model.num_res_blocks = (2, 1)
    config.loss.update(lpips_weight=2.0, lpips_jitter=True)
    return config


@contextmanager
def sends_nothing() -> Iterator[None]:
    """Keep all threads from sending arrays to devices unasked, as the loop keeps its own."""
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        yield
    finally:
        jax.config.update("jax_transfer_guard", "allow")


def test_loss_and_gradient_are_the_packages():
    config = small_config()
    params = random_params(config)
    frozen = {"lpips": load_lpips_vgg(), "estimator": params["estimator"]}
    rng = np.random.default_rng(0)
    # Partly saturated, where the clip of the prediction decides what learns.
    batch = {
        "hr": np.clip(rng.normal(0, 0.6, (2, 128, 128, 3)), -1, 1).astype(np.float32),
        "lr": np.clip(rng.normal(0, 0.6, (2, 32, 32, 3)), -1, 1).astype(np.float32),
    }
    keys = jax.random.split(jax.random.key(5), 2)
    assert draw_moves(keys).tolist() == [[True, False], [False, True]]  # each image its own way

    def grads_and_terms(make_fn):
        inputs = jax.device_put((params["denoiser"], frozen, batch, keys))
        grad_fn = jax.jit(jax.grad(make_fn(config, "none"), has_aux=True)).lower(*inputs).compile()
        with sends_nothing():
            grads, terms = jax.block_until_ready(grad_fn(*inputs))
        flat: Any = flatten_dict(grads, sep="/")
        return flat, terms

    expected, expected_terms = grads_and_terms(make_loss_fn)
    grads, terms = grads_and_terms(script.make_torch_loss_fn(torch.float32))
    for name in ("loss", "mse", "lpips"):
        np.testing.assert_allclose(terms[name], expected_terms[name], rtol=1e-4)
    assert grads.keys() == expected.keys()
    scale = max(np.linalg.norm(leaf) for leaf in expected.values())
    for name, leaf in expected.items():
        error = np.linalg.norm(grads[name] - leaf)
        # Rounding decides for single pixels on which side of white they are.
        assert error <= 5e-3 * np.linalg.norm(leaf) + 1e-6 * scale, name
    rounded, _ = grads_and_terms(script.make_torch_loss_fn(torch.bfloat16))
    a, b = (
        np.concatenate([np.ravel(tree[name]) for name in expected]) for tree in (expected, rounded)
    )
    assert a @ b > 0.9 * np.linalg.norm(a) * np.linalg.norm(b)


def test_a_run_begins_goes_on_and_leaves_a_model(tmp_path):
    config = small_config()
    photos = str(write_photos(tmp_path / "photos", 3))
    model = str(tmp_path / "model")
    save_model(model, ModelConfig.of(config), random_params(config))
    config.pretrained.update(estimator=model, denoiser=model)
    config.data.update(folders=(photos,), batch_size=2)
    config.train.update(steps=2, log_every=1, checkpoint_every=1, eval_every=0, keep_best="")
    config.schedule.update(warmup_steps=1, decay_steps=5)
    loss_fn = script.make_torch_loss_fn(torch.bfloat16)
    train_and_evaluate(config, tmp_path / "run", make_loss_fn=loss_fn)
    config.train.steps = 3
    train_and_evaluate(config, tmp_path / "run", make_loss_fn=loss_fn)
    _, before = load_model(model)
    _, after = load_model(tmp_path / "run" / "model")
    moved = np.abs(
        after["denoiser"]["head_in"]["kernel"] - before["denoiser"]["head_in"]["kernel"]
    ).max()
    assert 0 < moved < 0.1
    assert (tmp_path / "run" / "finished").read_text() == "3\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler.method": "ddim"}, "config.sampler.method is 'ddim', and only 'one_step'"),
        ({"network": "estimator"}, "config.network is 'estimator'"),
        ({"loss.lpips_weight": 0.0}, "lpips_weight is 0"),
    ],
)
def test_what_it_cannot_train_is_refused(changes, message):
    config = small_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        script.make_torch_loss_fn(torch.bfloat16)(config, "none")
