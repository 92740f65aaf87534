import dataclasses
import errno
from pathlib import Path

import jax
import numpy as np
import pytest
from golden import manifest, weights
from pth import Call, save_pth, tensor
from safetensors.numpy import load_file, save_file
from tiny_model import random_params, save_tiny_model

from configs import realsr_x4, tiny
from upsr_jax.convert import denoiser_from_torch, denoiser_to_torch, estimator_from_torch
from upsr_jax.models.config import ModelConfig
from upsr_jax.weights import convert_files as convert_files_module
from upsr_jax.weights.convert_files import (
    RELEASED,
    convert_files,
    denoiser_config,
    estimator_config,
    find_networks,
    to_params,
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
        assert getattr(ModelConfig.of(config), block) == RELEASED[block]


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


def test_the_same_command_finishes_what_was_killed_and_keeps_other_files(tmp_path):
    config, out = tiny.get_config(), tmp_path / "out"
    arrays = {"unet_tiny": denoiser_from_torch, "atd_tiny": estimator_from_torch}
    blocks = {"unet_tiny": config.model, "atd_tiny": config.estimator}
    denoiser, estimator = (f(float32_weights(n), blocks[n]) for n, f in arrays.items())
    params = {"denoiser": denoiser, "estimator": estimator}
    save_model(tmp_path / "model", ModelConfig.of(config), params)
    report = convert_files([tmp_path / "model"], out)
    (out / "atd_real.pth").unlink()
    (out / ".upsr-0.part").touch()
    before = (out / "upsr.pth").stat()
    assert convert_files([tmp_path / "model"], out) == report
    assert (out / "upsr.pth").stat() == before
    assert sorted(path.name for path in out.iterdir()) == ["atd_real.pth", "upsr.pth"]

    (out / "atd_real.pth").write_bytes(b"mine")
    (out / "upsr.pth").unlink()
    with pytest.raises(FileExistsError, match=r"atd_real\.pth exists already"):
        convert_files([tmp_path / "model"], out)
    assert not (out / "upsr.pth").exists()
    convert_files([tmp_path / "model"], out, overwrite=True)
    convert_files([out / "upsr.pth", out / "atd_real.pth"], tmp_path / "again")
    weights = [folder / "model.safetensors" for folder in (tmp_path / "again", tmp_path / "model")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_params_of_another_network_do_not_go_back(tmp_path):
    config = tiny.get_config()
    save_model(tmp_path / "model", ModelConfig.of(config), {"estimator": {"kernel": np.zeros(1)}})
    with pytest.raises(ValueError, match=r"estimator lacks conv_after_body"):
        convert_files([tmp_path / "model"], tmp_path / "torch")
    assert not (tmp_path / "torch").exists()


def test_lpips_is_recognized(tmp_path):
    arrays = empty_weights("lpips_vgg")
    assert find_networks({"": arrays}) == {"lpips": ("", arrays)}
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


def test_a_denoiser_that_pytorch_s_upsr_is_not_stays_here(tmp_path):
    config = tiny.get_config()
    config.model.residual = True
    params = {"denoiser": random_params(config)["denoiser"]}
    save_model(tmp_path / "model", ModelConfig.of(config), params)
    with pytest.raises(ValueError, match="residual=True"):
        convert_files([tmp_path / "model"], tmp_path / "torch")
    assert not (tmp_path / "torch").exists()


ATD = float32_weights("atd_tiny")


def refuse(content: dict, match: str, tmp_path: Path) -> None:
    save_pth(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=match):
        convert_files([tmp_path / "x.pth"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def nest(key: str, value: object) -> dict:
    for part in reversed(key.split("/")):
        value = {part: value}
    return value  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("key", "prefix", "place"),
    [
        ("params_ema", "module.", "params_ema"),
        ("state_dict", "module._orig_mod.", "state_dict"),
        ("net_g/params", "", "net_g.params"),
        ("model", "net._orig_mod.", "model.net"),
        ("state_dict", "generator.net_g.", "state_dict.generator.net_g"),
        ("checkpoint/ema/shadow", "_fsdp_wrapped_module.", "checkpoint.ema.shadow"),
    ],
)
def test_networks_are_found_in_wrappers(tmp_path, key, prefix, place):
    others = {"loss.lpips.lin0.model.1.weight": tensor(np.ones(1, np.float32)), "loss.step": 3}
    state_dict = {f"{prefix}{name}": tensor(x) for name, x in ATD.items()}
    state_dict |= others if "net" in prefix else {}
    content = {"epoch": 3, "optimizer": {"state": {}}, **nest(key, state_dict)}
    save_pth(content, tmp_path / "x.pth")
    report = convert_files([tmp_path / "x.pth"], tmp_path / "model")
    assert f"estimator, {len(ATD)} entries of {place}, " in report[0]
    kernel = load_model(tmp_path / "model")[1]["estimator"]["conv_first"]["kernel"]
    np.testing.assert_array_equal(kernel, ATD["conv_first.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("keys", [("params", "params_ema"), ("ema_model", "model"), ("a", "EMA")])
def test_moving_averages_are_preferred(tmp_path, keys):
    content = {
        key: {name: tensor(x if "ema" in key.lower() else 0 * x) for name, x in ATD.items()}
        for key in keys
    }
    convert_files([save_pth(content, tmp_path / "x.pth")], tmp_path / "model")
    kernel = load_model(tmp_path / "model")[1]["estimator"]["conv_first"]["kernel"]
    np.testing.assert_array_equal(kernel, ATD["conv_first.weight"].transpose(2, 3, 1, 0))


def test_several_networks_in_one_file_are_told_apart(tmp_path):
    unet = float32_weights("unet_tiny")
    state_dict = {f"denoiser.{name}": x for name, x in unet.items()}
    state_dict |= {f"estimator.{name}": x for name, x in ATD.items()}
    save_file(state_dict, tmp_path / "x.pt")
    convert_files([tmp_path / "x.pt"], tmp_path / "model")
    assert load_model(tmp_path / "model")[1].keys() == {"denoiser", "estimator"}

    save_file({f"{net}.{name}": x for name, x in ATD.items() for net in "ab"}, tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"2 networks of one kind, estimator: under a, b; save"):
        convert_files([tmp_path / "y.pt"], tmp_path / "other")


def test_what_is_found_instead_is_listed(tmp_path):
    ones = tensor(np.ones(1, np.float32))
    content = {"net_g": {"a": ones, "b": ones}, "net_d": {"c": ones}, "epoch": 3}
    match = "2 entries of net_g that begin with a, b; 1 entries of net_d that begin with c$"
    refuse(content, match, tmp_path)


def test_a_name_with_and_without_a_wrapper_is_refused(tmp_path):
    entries = {name: tensor(x) for name, x in ATD.items()}
    entries["module.norm.bias"] = tensor(ATD["norm.bias"])
    refuse(entries, "holds one entry twice, as norm.bias and module.norm.bias", tmp_path)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            Call("torch._utils._rebuild_qtensor"),
            "norm.bias is torch._utils._rebuild_qtensor, where",
        ),
        (3, "norm.bias is int, where a dense tensor"),
        (tensor(np.ones(1, np.float32), (), ()), r"norm.bias has the shape \(\)"),
        (tensor(np.zeros((3, 0), np.float32)), r"norm.bias has the shape \(3, 0\)"),
        (tensor(ATD["norm.bias"].astype(np.int64), kind="LongStorage"), "is of int64: save it"),
        (tensor(ATD["norm.bias"] > 0, kind="BoolStorage"), "estimator/norm/bias is of bool"),
        (
            tensor(ATD["norm.bias"] + np.float32(np.inf)),
            "estimator/norm/bias holds NaN or infinity",
        ),
        (tensor(ATD["norm.bias"] + np.float32(np.nan)), "estimator/norm/bias holds NaN"),
    ],
)
def test_entries_that_are_no_weights_are_refused(tmp_path, value, match):
    refuse({name: tensor(x) for name, x in ATD.items()} | {"norm.bias": value}, match, tmp_path)


@pytest.mark.parametrize(
    ("network", "name", "shape", "match"),
    [
        ("unet_tiny", "input_blocks.1.1.patch_embed.proj.weight", (1, 32, 1, 1), "no denoiser has"),
        ("unet_tiny", "conv_last.weight", (3,), "no denoiser has"),
        ("atd_tiny", "conv_first.weight", (7, 3, 3, 3), "of this configuration|no estimator has"),
        (
            "atd_tiny",
            "layers.0.residual_group.layers.0.attn_win.relative_position_bias_table",
            (255**2, 1),
            "windows are of 128: at most 32",
        ),
    ],
)
def test_shapes_that_no_network_has_are_refused(network, name, shape, match):
    arrays = float32_weights(network)
    assert name in arrays
    kind = "denoiser" if network == "unet_tiny" else "estimator"
    with pytest.raises(ValueError, match=match):
        to_params(kind, arrays | {name: np.zeros(shape, np.float32)})


def test_masks_of_other_windows_are_not_computed():
    arrays = empty_weights("unet_tiny")
    mask = np.zeros((10**6, 1, 1), np.float32)
    with pytest.raises(ValueError, match="make maps of 8000"):
        to_params("denoiser", arrays | {"input_blocks.1.1.blocks.1.attn_mask": mask})


def test_a_full_disk_is_named_before_anything_is_written(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "model")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match=r"torch.*[Mm]ake room"):
        convert_files([tmp_path / "model"], tmp_path / "torch")
    assert not (tmp_path / "torch").exists()
