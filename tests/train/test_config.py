"""Keys of a config that nothing reads, or that are missing, are mistakes."""

import importlib
import re
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from configs import distil_x4, lite_x4, realsr_x4, validated_x4
from upsr_jax.train.config import KEYS, check_config, check_training

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("degradations",)])
def test_our_configs_are_whole(name):
    check_config(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize(
    ("block", "key", "message"),
    [
        ("train", "check_point_every", "did you mean checkpoint_every"),
        ("model", "widht", "config.model.widht: did you mean width"),
        ("degradation.first.noise", "sigmas", "did you mean sigma"),
        ("data", "zzz", "nothing reads config.data.zzz: known are batch_size"),
        ("", "optimiser", "config.optimiser: did you mean optimizer"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(block, key, message):
    config = realsr_x4.get_config()
    target = config
    for name in filter(None, block.split(".")):
        target = target[name]
    target[key] = 1
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize("name", ["train.remat", "loss.lpips_weight", "schedule.warmup_steps"])
def test_a_missing_key_is_named(name):
    config = realsr_x4.get_config()
    block, key = name.split(".")
    del config[block][key]
    with pytest.raises(ValueError, match=rf"config\.{name} is missing"):
        check_config(config)


def test_a_value_where_a_block_belongs_is_refused():
    config = lite_x4.get_config()
    check_config(config)  # its degradation has no second order
    config.degradation.final = None
    with pytest.raises(ValueError, match=r"config\.degradation\.final is None, but must be a"):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network", "denoisr", "network is 'denoisr': it must be one of denoiser, estimator"),
        ("dtype", "bfloat17", "dtype is 'bfloat17': it must be"),
        ("seed", -1, "seed is -1: it must be a whole number in 0"),
        ("seed", 2**32, "seed is 4294967296: it must be a whole number in 0"),
        ("sampler.method", "onestep", "method is 'onestep': it must be one of ddim, ancestral"),
        ("data.batch_size", 0, "batch_size is 0: it must be at least 1"),
        ("data.num_workers", -1, "num_workers is -1: it must be at least 0"),
        ("train.log_every", 0, "log_every is 0: it must be at least 1"),
        ("diffusion.end", 1.5, "end is 1.5: it must be above 0 and at most 1"),
        ("prior.min_noise", 1.5, r"min_noise is 1.5: it must be in 0\.\.1"),
        ("data.pairs", ("gt",), r"pairs is \('gt',\): it must be a folder of ground truth and"),
        ("model.shift_mask", "none", "shift_mask is 'none': it must be one of released, swin"),
        ("model.num_res_blocks", (2, 2), r"num_res_blocks \(2, 2\): give one of each"),
        ("schedule.learning_rate", 0.0, "learning_rate is 0.0: it must be above 0"),
        ("schedule.gamma", 0.0, "gamma is 0.0: it must be above 0 and at most 1"),
        ("train.ema_decay", 1.0, "ema_decay is 1.0: it must be at least 0 and below 1"),
        ("degradation.first.blur.sizes", (3, 20), "sizes is .*: it must be two odd sizes"),
        ("degradation.first.blur.sigma", (3.0, 0.2), "sigma is .*, the smaller one first"),
        ("degradation.first.blur.bell_probs", (0.5, 0.5), "bell_probs is .*: it must be six"),
        ("degradation.second.resize.up_prob", 0.8, "second.resize has up_prob 0.8 and down_prob"),
        ("degradation.first.resize.factor", (0.5, 0.9), "factor is .* with 1 between"),
        ("degradation.final.jpeg_quality", (95,), "jpeg_quality is .*: it must be two qualities"),
        ("train.keep_best", "ssim", "keep_best is 'ssim': it must be one of psnr_y, ssim_y"),
        ("train.keep_best", "psnr_y=0", "'psnr_y=0': it must be one of .* weights above 0"),
        ("wandb.mode", "on", "mode is 'on': it must be one of online, offline, ''"),
        ("data.crop_size", 30, "crop_size is 30: it must be a multiple of 4 from 16 on"),
        ("data.crop_size", 12, "crop_size is 12: it must be"),
        ("data.scale", (0.5, 1.5), r"scale is \(0\.5, 1\.5\): it must be two factors above 0 and"),
        ("data.scale", (0.9, 0.8), r"scale is \(0\.9, 0\.8\): it must be"),
        ("data.rotation", 60.0, r"rotation is 60\.0: it must be 0 to 45 degrees"),
        ("data.rotation", -1.0, r"rotation is -1\.0: it must be"),
        ("data.pool", 100, r"data\.pool is 100: it must be a multiple of the batch_size, 32, or 0"),
        ("data.degrade_on", "gpu", "degrade_on is 'gpu': it must be one of host, device"),
        ("data.degrade_on", "device", "JPEG can only be simulated: set config.degradation.sim"),
        ("data.pool", -32, r"data\.pool is -32: it must be a whole number from 0 on"),
        ("eval.max_images", 0, "max_images is 0: it must be at least 1"),
        ("eval.precision", "half", "precision is 'half': it must be one of float32, bfloat16"),
        ("loss.lpips_dtype", "float64", "'float64': it must be one of float32, bfloat16, float16"),
        ("sampler.spacing", "even", "spacing is 'even': it must be one of last, released"),
    ],
)
def test_values_that_can_not_be_are_refused(name, value, message):
    config = realsr_x4.get_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("network", "estimator", r"a denoiser learns .*: set config\.network to denoiser"),
        ("sampler.method", "ddim", r"config\.sampler\.method to one_step, or no teacher"),
        ("pretrained.teacher", "", "consistency_weight is 1.0, which is for a student and its"),
        ("model.residual", True, r"as one with config\.model\.residual can't: set the weight to 0"),
    ],
)
def test_a_teacher_goes_with_a_denoiser_of_one_step(name, value, message):
    config = distil_x4.get_config()
    check_config(config)
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_pairs_are_not_degraded_on_a_device():
    config = realsr_x4.get_config()
    config.degradation.simulated_jpeg = True
    config.data.degrade_on = "device"
    check_config(config)
    config.data.pairs = ("hr", "lr")
    with pytest.raises(ValueError, match="degrade_on must be 'host' for pairs"):
        check_config(config)


@pytest.mark.parametrize(("name", "value"), [("scale", (0.5, 1.0)), ("rotation", 9.0)])
def test_pairs_are_neither_shrunk_nor_turned(name, value):
    config = realsr_x4.get_config()
    config.data.update(pairs=("hr", "lr"), scale=(1.0, 1.0), rotation=0.0)
    check_config(config)
    config.data[name] = value
    with pytest.raises(ValueError, match=r"they must be \(1\.0, 1\.0\) and 0\.0 for pairs"):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data.batch_size", 9, "a batch of 9 can't be split evenly over 4 devices and 1 micro"),
        ("train.microbatches", 3, "evenly over 4 devices and 3 microbatches"),
        ("eval.metrics", ("psnr_y",), "keep_best is 'lpips_vgg', but config.eval measures psnr_y"),
        ("train.eval_every", 7, r"set eval_every \(7\) to a multiple of checkpoint_every \(5000\)"),
        ("train.eval_every", 0, "keep_best = 'lpips_vgg' can keep only what is evaluated"),
    ],
)
def test_what_training_can_not_do_is_refused(name, value, message):
    """An evaluation of the same config doesn't mind."""
    mesh = AbstractMesh((4, 1), ("data", "fsdp"))
    config = realsr_x4.get_config()
    check_training(config, mesh)
    config.update_from_flattened_dict({name: value})
    check_config(config)
    with pytest.raises(ValueError, match=message):
        check_training(config, mesh)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("real/sr", {}, "names a set 'real/sr': a name is of letters"),
        ("train", {}, "names a set 'train'"),
        ("a", {"metric": ("niqe",)}, r"config\.eval\.sets\.a\.metric: did you mean metrics"),
        ("a", {"model": "x"}, r"nothing reads config\.eval\.sets\.a\.model"),
        ("a", {"max_images": 0}, r"config\.eval\.sets\.a\.max_images is 0: it must be at least 1"),
        ("a", {"pyiqa": "musiq"}, r"\.a\.pyiqa is 'musiq': it must be names of metrics of pyiqa"),
        ("a", {"gt": "gs://x"}, r"gs://x is a URL"),
    ],
)
def test_a_set_of_validation_that_can_not_be_is_named(name, values, message):
    config = realsr_x4.get_config()
    config.eval.sets = {name: values}
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_the_best_is_by_what_some_set_measures():
    config = validated_x4.get_config()
    mesh = AbstractMesh((1, 1), ("data", "fsdp"))
    config.eval.pyiqa = ("musiq",)
    config.train.keep_best = "realsr/psnr_y=0.05,realset65/niqe,imagenet_test/pyiqa:musiq=0.1"
    check_config(config)
    check_training(config, mesh)
    config.train.keep_best = "realset65/lpips_alex"  # which has no ground truth
    check_config(config)
    with pytest.raises(ValueError, match=r"measures .*realset65/niqe, realset65/pyiqa:musiq, real"):
        check_training(config, mesh)


@pytest.mark.parametrize("block", ["data", "pretrained", "loss", "train"])
def test_each_key_of_the_table_is_read(block):
    """The table is checked against the source, so that it can't fall behind it."""
    source = "".join(path.read_text() for path in (ROOT / "upsr_jax").rglob("*.py"))
    if block == "train":
        source = source.replace("settings.", "train.")
    read = set(re.findall(rf"\b{block}\.([a-z_]+)", source))
    if block == "pretrained":
        read |= {"denoiser", "estimator"}  # by the name of the network
    assert KEYS[block] <= read
