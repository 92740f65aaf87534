import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import manifest, weights
from safetensors.numpy import load_file, save_file
from tiny_model import random_params

from configs import realsr_x4, tiny
from upsr_jax.convert import denoiser_from_torch, denoiser_to_torch
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights import convert_files as convert_files_module
from upsr_jax.weights.convert_files import (
    RELEASED,
    convert_files,
    denoiser_config,
    estimator_config,
    recognize,
)
from upsr_jax.weights.model_folder import load_model, save_model

INFER = {"unet": denoiser_config, "atd": estimator_config}
BLOCK = {"unet": "model", "atd": "estimator"}


def float32_weights(name: str) -> dict[str, np.ndarray]:
    return {key: array.astype(np.float32) for key, array in weights(name).items()}


def write_source(path: Path, name: str) -> Path:
    """Write a network's seeded weights as they may come out of a multi-GPU training."""
    save_file({f"module.{key}": x for key, x in float32_weights(name).items()}, path)
    return path


def empty_weights(name: str) -> dict[str, np.ndarray]:
    """Give a manifest's shapes without their memory."""
    zero = np.float32(0)
    parameters = [entry for entry in manifest(name) if entry["kind"] == "parameter"]
    return {entry["name"]: np.broadcast_to(zero, entry["shape"]) for entry in parameters}


def with_buffers(config: dict) -> dict[str, np.ndarray]:
    """Add a tiny denoiser's masks and indices to its seeded weights."""
    params = denoiser_from_torch(float32_weights("unet_tiny"), config)
    return denoiser_to_torch(params, config)


@pytest.mark.parametrize("size", [realsr_x4, tiny])
@pytest.mark.parametrize("network", ["unet", "atd"])
def test_configuration_is_read_off_the_shapes(network, size):
    arrays = empty_weights(f"{network}_{size.__name__.split('.')[-1]}")
    expected = size.get_config()[BLOCK[network]].to_dict()
    if network == "atd":
        expected["category_size"] = 128  # shapes don't show it; the released one is taken
    assert INFER[network](arrays) == expected


def test_what_weights_do_not_show_is_as_in_the_released_setting():
    config = realsr_x4.get_config()
    for block in ("prior", "diffusion", "sampler"):
        assert config[block].to_dict() == RELEASED[block]


@pytest.mark.parametrize("shift_mask", ["released", "swin"])
def test_masks_tell_the_kind_and_the_nominal_size(shift_mask):
    config = tiny.get_config().model.to_dict()
    config |= {"shift_mask": shift_mask, "nominal_size": 32}
    assert denoiser_config(with_buffers(config)) == config


def test_unknown_masks_are_refused():
    config = tiny.get_config().model.to_dict()
    arrays = with_buffers(config)
    arrays["input_blocks.1.1.blocks.1.attn_mask"] *= 2
    with pytest.raises(ValueError, match="masks or position indices are not those"):
        denoiser_config(arrays)


def test_both_networks_become_one_folder(tmp_path):
    sources = [
        write_source(tmp_path / "u.safetensors", "unet_tiny"),
        write_source(tmp_path / "a.safetensors", "atd_tiny"),
    ]
    report = convert_files(sources, tmp_path / "model")
    config, params = load_model(tmp_path / "model")
    assert config.network == "denoiser"
    assert config.model and config.model["multipliers"] == (1, 2)
    assert config.estimator and config.estimator["depths"] == (2, 2)

    denoiser, estimator = float32_weights("unet_tiny"), float32_weights("atd_tiny")
    for arrays, kind in ((denoiser, "denoiser"), (estimator, "estimator")):
        count = sum(x.size for x in jax.tree.leaves(params[kind]))
        assert count == sum(x.size for x in arrays.values())
        assert any(f"{kind}, {len(arrays)} entries" in line for line in report)
        assert any(f"{count:,} parameters" in line for line in report)
    kernel = params["denoiser"]["head_out"]["kernel"]  # OIHW -> HWIO
    np.testing.assert_array_equal(kernel, denoiser["conv_last.weight"].transpose(2, 3, 1, 0))
    kernel = params["estimator"]["conv_first"]["kernel"]
    np.testing.assert_array_equal(kernel, estimator["conv_first.weight"].transpose(2, 3, 1, 0))


def test_denoiser_alone_says_what_is_missing(tmp_path):
    source = write_source(tmp_path / "u.safetensors", "unet_tiny")
    report = convert_files([source], tmp_path / "model")
    assert "needs the estimator" in report[-1]
    assert load_model(tmp_path / "model")[1].keys() == {"denoiser"}


def test_estimator_alone_is_a_model(tmp_path):
    source = write_source(tmp_path / "a.safetensors", "atd_tiny")
    convert_files([source], tmp_path / "model")
    config, params = load_model(tmp_path / "model")
    assert (config.network, params.keys()) == ("estimator", {"estimator"})


@pytest.mark.parametrize(("category_size", "lines"), [(128, 0), (32, 1)])
def test_the_category_size_that_no_file_holds_is_told(tmp_path, monkeypatch, category_size, lines):
    """Without PyTorch: what would be written is written down here."""
    source = write_source(tmp_path / "a.safetensors", "atd_tiny")
    report = convert_files([source], tmp_path / "read")
    assert sum("category_size 128 is assumed" in line for line in report) == 1

    config, params = load_model(tmp_path / "read")
    estimator = {**(config.estimator or {}), "category_size": category_size}
    save_model(tmp_path / "model", dataclasses.replace(config, estimator=estimator), params)
    monkeypatch.setattr(
        convert_files_module, "write_torch", lambda path, arrays: save_file(dict(arrays), path)
    )
    report = convert_files([tmp_path / "model"], tmp_path / "back")
    assert sum(f"category_size {category_size}" in line for line in report) == lines


def test_params_of_another_network_do_not_go_back(tmp_path):
    config = tiny.get_config()
    save_model(tmp_path / "model", ModelConfig.of(config), {"estimator": {"kernel": np.zeros(1)}})
    with pytest.raises(ValueError, match=r"estimator lacks conv_after_body"):
        convert_files([tmp_path / "model"], tmp_path / "torch")
    assert not (tmp_path / "torch").exists()


def test_lpips_is_recognized(tmp_path):
    arrays = empty_weights("lpips_vgg")
    assert recognize(arrays) == "lpips"
    save_file(
        {name: np.ascontiguousarray(x) for name, x in arrays.items()}, tmp_path / "l.safetensors"
    )
    convert_files([tmp_path / "l.safetensors"], tmp_path / "model")
    arrays = load_file(tmp_path / "model" / "model.safetensors")
    assert arrays["lpips/conv1_1/kernel"].shape == (3, 3, 3, 64)
    assert arrays["lpips/head_5"].shape == (512,)


def test_all_faults_are_listed_and_nothing_is_written(tmp_path):
    arrays = float32_weights("unet_tiny")
    del arrays["conv_hr.bias"]
    arrays["conv_up1.weight"] = arrays["conv_up1.weight"][:, :-1]
    arrays["extra"] = np.zeros(1, np.float32)
    save_file(
        {name: np.ascontiguousarray(x) for name, x in arrays.items()}, tmp_path / "u.safetensors"
    )
    with pytest.raises(ValueError, match=r"u\.safetensors") as info:
        convert_files([tmp_path / "u.safetensors"], tmp_path / "model")
    for fault in ("conv_hr.bias", "conv_up1.weight", "extra"):
        assert fault in str(info.value)
    assert not (tmp_path / "model").exists()


def test_a_second_network_of_a_kind_is_refused(tmp_path):
    source = write_source(tmp_path / "a.safetensors", "atd_tiny")
    with pytest.raises(ValueError, match="a second estimator"):
        convert_files([source, source], tmp_path / "model")


def test_other_weights_are_refused(tmp_path):
    save_file({"layer.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: holds no UPSR denoiser.* layer\.weight"):
        convert_files([tmp_path / "x.safetensors"], tmp_path / "model")


def test_torn_denoiser_names_the_entry():
    arrays = empty_weights("unet_tiny")
    del arrays["conv_last.weight"]
    with pytest.raises(KeyError, match=r"conv_last\.weight"):
        denoiser_config(arrays)


def test_folder_without_networks_does_not_go_back(tmp_path):
    save_model(tmp_path / "model", None, {"lpips": {"head_1": np.zeros(3, np.float32)}})
    with pytest.raises(ValueError, match="neither denoiser nor estimator but lpips"):
        convert_files([tmp_path / "model"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_pytorch_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "x.pth").touch()
    with pytest.raises(ImportError, match=r"pip install 'upsr_jax\[convert\]'"):
        convert_files([tmp_path / "x.pth"], tmp_path / "model")


def test_a_denoiser_that_pytorch_s_upsr_is_not_stays_here(tmp_path):
    config = tiny.get_config()
    config.model.residual = True
    params = {"denoiser": random_params(config)["denoiser"]}
    save_model(tmp_path / "model", ModelConfig.of(config), params)
    with pytest.raises(ValueError, match="residual=True"):
        convert_files([tmp_path / "model"], tmp_path / "torch")
    assert not (tmp_path / "torch").exists()
