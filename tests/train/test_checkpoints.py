"""Checkpoints come back as they were, or say what is wrong with them; real files, real damage."""

import dataclasses
import json
import logging
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict
from small_checkpoints import (
    FROZEN,
    IMAGES,
    OPTIMIZERS,
    assert_same,
    chosen,
    restored,
    save_steps,
    state_after,
)

from configs import tiny
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.checkpoints import (
    ADDED,
    bit_sum,
    check_same_config,
    check_same_images,
    choose_checkpoint,
    export_model,
    open_checkpoints,
    read_checkpoint,
    restore,
    save,
)
from upsr_jax.train.config import config_as_json
from upsr_jax.train.state import TrainState
from upsr_jax.weights.model_folder import load_model

# Where an array can't be read or written, orbax leaves tasks of a closed event loop behind.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def config() -> ConfigDict:
    config = tiny.get_config()
    config.train.update(keep_checkpoints=3, keep_every=0, keep_best="")
    return config


def kept(workdir: Path) -> set[int]:
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_last_checkpoint_comes_back_bit_for_bit(tmp_path, config, optimizer):
    save_steps(tmp_path, config, 1, 2, optimizer=optimizer)
    state = restored(tmp_path, config, optimizer=optimizer)
    assert_same(state, state_after(2, 2, optimizer))


def test_without_a_checkpoint_none_is_chosen(tmp_path, config):
    assert choose_checkpoint(tmp_path / "nowhere") is None
    save_steps(tmp_path, config)
    assert choose_checkpoint(tmp_path) is None


def files_of(folder: Path) -> Iterator[Path]:
    """The files that hold arrays."""
    return (path for path in folder.rglob("d/*") if path.is_file())


def flip_a_bit(folder: Path) -> None:
    path = max(files_of(folder / "state"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(folder: Path) -> None:
    path = max(files_of(folder / "model"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_file(folder: Path) -> None:
    max(files_of(folder / "state"), key=lambda path: path.stat().st_size).unlink()


def empty_the_meta_file(folder: Path) -> None:
    (folder / "meta" / "metadata").write_text("")


def empty_the_metrics_file(folder: Path) -> None:
    (folder / "metrics" / "metrics").write_text("")


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, lose_a_file, empty_the_meta_file, empty_the_metrics_file]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(
    tmp_path, config, damage, caplog
):
    config.train.keep_best = "psnr_y"
    save_steps(tmp_path, config, 1, 2, 3)
    damage(tmp_path / "checkpoints" / "3")
    with caplog.at_level(logging.WARNING, "upsr_jax"):
        assert_same(restored(tmp_path, config), state_after(2, 2))
    assert "the checkpoint of step 3 is damaged (" in caplog.text
    assert kept(tmp_path) == {1, 2}
    (aside,) = (tmp_path / "damaged_checkpoints").iterdir()
    assert aside.name.startswith("3_") and (aside / "state").is_dir()
    save_steps(tmp_path, config, 3)  # nothing stands in the way of the new one
    assert_same(restored(tmp_path, config), state_after(3, 3))


def test_an_older_one_with_damaged_metrics_is_set_aside_too(tmp_path, config, caplog):
    config.train.keep_best = "psnr_y"
    save_steps(tmp_path, config, 1, 2, 3, metrics={step: {"psnr_y": 1.0} for step in (1, 2, 3)})
    empty_the_metrics_file(tmp_path / "checkpoints" / "1")
    with caplog.at_level(logging.WARNING, "upsr_jax"):
        assert_same(restored(tmp_path, config), state_after(3, 3))
    told = "the checkpoint of step 1 is damaged (.*checkpoints/1/metrics/metrics: Expecting value"
    assert re.search(told.replace("(", r"\("), caplog.text)
    assert kept(tmp_path) == {2, 3}


@pytest.mark.parametrize("file", ["meta/metadata", "metrics/metrics", "state/manifest.ocdbt"])
def test_one_that_can_not_be_read_for_now_stays_where_it_is(tmp_path, config, file):
    """A link that leads to itself stands for a lost server or too many open files."""
    config.train.keep_best = "psnr_y"
    save_steps(tmp_path, config, 1, 2)
    path = tmp_path / "checkpoints" / "2" / file
    whole = path.rename(path.with_name("whole"))
    path.symlink_to(path.name)
    for read in (choose_checkpoint, read_checkpoint):
        with pytest.raises(OSError, match=r"checkpoints/2 can't be read for now \("):
            read(tmp_path)
    assert kept(tmp_path) == {1, 2}
    whole.rename(path)
    assert_same(restored(tmp_path, config), state_after(2, 2))


def test_if_all_are_damaged_nothing_is_moved_and_no_new_run_begins(tmp_path, config):
    save_steps(tmp_path, config, 1, 2)
    flip_a_bit(tmp_path / "checkpoints" / "1")
    flip_a_bit(tmp_path / "checkpoints" / "2")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"all checkpoints .* damaged: .*step 2: the array state/"
        ):
            choose_checkpoint(tmp_path)
    assert kept(tmp_path) == {1, 2}


@pytest.mark.parametrize("file", ["state/array_metadatas/process_0", "state/_METADATA"])
@pytest.mark.parametrize("alone", [True, False])
def test_every_process_restores_without_what_it_does_not_need(tmp_path, config, file, alone):
    """Of several processes, each reads its own parts of the arrays."""
    save_steps(tmp_path, config, 1, 2)
    (tmp_path / "checkpoints" / "2" / file).write_text("")
    step = 1 if file.endswith("_METADATA") else 2
    found = chosen(tmp_path)
    if not alone:
        found = found._replace(arrays=None)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_after(0))
    assert_same(restore(tmp_path, found, config, shapes, FROZEN), state_after(step, step))


def rewrite_meta(workdir: Path, step: int, change) -> None:
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"clip_norm": 0.0', '"clip_norm": 8.0'),
        ('"seed": 0', '"reed": 0'),
        ('"images": [5', '"images": [4'),
        ('"sha256"', '"sha257"'),
        ('"sha256": "', '"sha256": "0'),
    ],
)
def test_a_change_of_the_meta_file_is_damage(tmp_path, config, caplog, before, after):
    def change(text: str) -> str:
        assert before in text
        return text.replace(before, after)

    save_steps(tmp_path, config, 1, 2)
    rewrite_meta(tmp_path, 2, change)
    assert chosen(tmp_path).step == 1
    assert "2/meta/metadata: it has changed since it was written" in caplog.text


def test_an_array_of_another_name_is_damage(tmp_path, config, caplog):
    """Its bits are the same, and so is the sum of all."""
    save_steps(tmp_path, config, 1, 2)
    path = tmp_path / "checkpoints" / "2" / "state" / "_METADATA"
    path.write_text(path.read_text().replace("nu", "no"))
    assert chosen(tmp_path).step == 1
    assert "step 2 is damaged" in caplog.text


@pytest.mark.parametrize("clip_norms", [(0.0, 1.0), (1.0, 0.0)])
def test_clipping_may_begin_and_end(tmp_path, config, clip_norms):
    def state_with(clip_norm: float, state: TrainState) -> TrainState:
        inner = state.opt_state[1]  # the states' optimizer clips
        return state if clip_norm else dataclasses.replace(state, opt_state=inner)

    before, now = clip_norms
    config.optimizer.clip_norm = before
    with open_checkpoints(tmp_path, config) as checkpoints:
        save(checkpoints, config, state_with(before, state_after(1, 1)), FROZEN, IMAGES)
    config.optimizer.clip_norm = now
    found = chosen(tmp_path)
    with pytest.raises(ValueError, match=r"allow_changes to \('optimizer.clip_norm',\)"):
        check_same_config(found.meta["config"], config, tmp_path)
    config.train.allow_changes = ("optimizer.clip_norm",)
    (told,) = check_same_config(found.meta["config"], config, tmp_path)
    assert told == f"optimizer.clip_norm was {before} and is now {now}"
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_with(now, state_after(0)))
    for one in (found, found._replace(arrays=None)):
        state = restore(tmp_path, one, config, shapes, FROZEN)
        assert_same(state, state_with(now, state_after(1, 1)))


def test_a_state_of_another_optimizer_is_refused_in_a_sentence(tmp_path, config):
    save_steps(tmp_path, config, 1, optimizer="muon")
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_after(0))
    for found in (chosen(tmp_path), chosen(tmp_path)._replace(arrays=None)):
        with pytest.raises(ValueError, match=r"checkpoints/1 is not what this program restores"):
            restore(tmp_path, found, config, shapes, FROZEN)


def test_other_images_are_refused_as_they_would_come_in_another_order(tmp_path, config):
    save_steps(tmp_path, config, 1)
    with pytest.raises(ValueError, match=r"were 5 \+ 7 when .* are 5 \+ 8 now, .* bring the same"):
        check_same_images(chosen(tmp_path), [5, 8], tmp_path)


def test_a_checkpoint_knows_whether_its_step_was_evaluated(tmp_path, config):
    for step, metrics in ((1, {"psnr_y": 1.0}), (2, {})):
        save_steps(tmp_path, config, step, metrics={step: metrics})
        assert chosen(tmp_path).meta["evaluated"] == bool(metrics)


def test_what_a_checkpoint_is_too_old_to_tell_is_taken_for_right(tmp_path, config):
    save_steps(tmp_path, config, 1)
    path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    totals = dict.fromkeys(("state", "denoiser", "estimator"), 0)
    for name, total in meta["sums"].items():
        totals[name.partition("/")[0]] += total
    sums = {name: total % 2**32 for name, total in totals.items()}
    path.write_text(json.dumps({"config": meta["config"], "sums": sums}))
    found = chosen(tmp_path)
    check_same_images(found, [1], tmp_path)
    assert found.meta["evaluated"] and not found.meta["skipped"]
    other = FROZEN | {"estimator": {"kernel": 2 * FROZEN["estimator"]["kernel"]}}
    with pytest.raises(ValueError, match=r"the estimator in config\.pretrained.* is not the one"):
        restored(tmp_path, config, other)
    assert_same(restored(tmp_path, config), state_after(1, 1))
    flip_a_bit(tmp_path / "checkpoints" / "1")
    with pytest.raises(ValueError, match="are damaged"):
        chosen(tmp_path)


def test_one_process_reads_the_arrays_once(tmp_path, config):
    """What is on the disk may be lost as soon as it has been checked."""
    save_steps(tmp_path, config, 1)
    found = chosen(tmp_path)
    for item in ("state", "model", "meta"):
        shutil.rmtree(tmp_path / "checkpoints" / "1" / item)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_after(0))
    assert_same(restore(tmp_path, found, config, shapes, FROZEN), state_after(1, 1))


def test_another_estimator_is_refused(tmp_path, config):
    save_steps(tmp_path, config, 1)
    other = FROZEN | {"estimator": {"kernel": FROZEN["estimator"]["kernel"].at[0, 1].set(7.0)}}
    with pytest.raises(ValueError, match=r"the estimator in config\.pretrained.* is not the one"):
        restored(tmp_path, config, other)


def test_last_regular_and_best_are_kept(tmp_path, config):
    config.train.update(keep_checkpoints=2, keep_every=4, keep_best="lpips_vgg")
    metrics = {step: {"lpips_vgg": float(value)} for step, value in enumerate("54136729", 1)}
    metrics[5] = {}  # not evaluated
    metrics[6] = {"lpips_vgg": np.nan}  # not measurable
    save_steps(tmp_path, config, *metrics, metrics=metrics)
    assert kept(tmp_path) == {7, 8, 4, 3}
    config.train.update(keep_best="psnr_y")
    metrics = {9: {"psnr_y": 2.0}, 10: {"psnr_y": 3.0}, 11: {"psnr_y": 1.0}, 12: {"psnr_y": 1.0}}
    save_steps(tmp_path, config, *metrics, metrics=metrics)
    assert {10, 11, 12} <= kept(tmp_path)
    assert 9 not in kept(tmp_path)


def test_the_best_by_a_mix_of_metrics_of_several_sets_is_kept(tmp_path, config):
    """0.1 psnr_y - lpips_vgg + 0.01 pyiqa:musiq: 1.9, 2.1, 2.0, and not measured."""
    config.train.update(keep_checkpoints=1, keep_every=0)
    config.train.keep_best = "a/psnr_y=0.1, a/lpips_vgg, b/pyiqa:musiq=0.01"
    names: list[str] = ["a/psnr_y", "a/lpips_vgg", "b/pyiqa:musiq"]
    values = {1: (20.0, 0.5, 40.0), 2: (21.0, 0.5, 50.0), 3: (23.0, 0.6, 30.0), 4: (99.0, 0.1)}
    metrics = {step: dict(zip(names, row, strict=False)) for step, row in values.items()}
    with open_checkpoints(tmp_path, config, {"pyiqa:musiq": True}) as checkpoints:
        for step in values:
            save(checkpoints, config, state_after(step), FROZEN, IMAGES, metrics[step])
    assert kept(tmp_path) == {2, 4}


def test_a_failed_save_surfaces_and_the_one_before_stays_whole(tmp_path, config):
    """A limit on the size of files stands for a full disk."""
    save_steps(tmp_path, config, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with (
            pytest.raises(OSError, match=r"could not be written into .* that of step 1\. Make"),
            open_checkpoints(tmp_path, config) as checkpoints,
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
            save(checkpoints, config, state_after(2, 2), FROZEN, IMAGES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(restored(tmp_path, config), state_after(1, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1), ("model.width", 64), ("data.batch_size", 8), ("train.ema_decay", 0.5)],
)
def test_a_config_that_contradicts_is_refused(config, name, value):
    stored = config_as_json(config)
    before = stored[name] if name == "seed" else stored[name.split(".")[0]][name.split(".")[1]]
    config.update_from_flattened_dict({name: value})
    with pytest.raises(ValueError, match=rf"in runs/a: {name} was {before} and is now {value}\."):
        check_same_config(stored, config, "runs/a")


def test_a_run_from_before_a_key_goes_on_if_the_key_says_what_it_did(config):
    stored = config_as_json(config)
    for name in (*ADDED, "loss.lpips_dtype", "sampler.spacing", "eval.precision"):
        block, key = name.split(".")
        del stored[block][key]
    stored["degradation"]["use_sharp"] = stored["data"].pop("use_sharp")  # where it was
    check_same_config(stored, config, "runs/a")
    stored["degradation"]["use_sharp"] = True
    with pytest.raises(ValueError, match=r"data\.use_sharp was True and is now False\."):
        check_same_config(stored, config, "runs/a")
    stored["degradation"]["use_sharp"] = False
    config.optimizer.muon = True
    config.data.scale = (0.5, 1.0)
    changes = r"data\.scale was \[1\.0, 1\.0\] and is now \[0\.5, 1\.0\]; optimizer\.muon was False"
    with pytest.raises(ValueError, match=changes):
        check_same_config(stored, config, "runs/a")


def test_a_run_from_before_lpips_had_a_type_goes_on_in_that_of_its_networks(config):
    config.dtype = "bfloat16"
    stored = config_as_json(config)
    del stored["loss"]["lpips_dtype"]
    changed = r"loss\.lpips_dtype was bfloat16 and is now float32\. Set it back to go on, or "
    allow = r"config\.train\.allow_changes to \('loss\.lpips_dtype',\)"
    with pytest.raises(ValueError, match=changed + allow):
        check_same_config(stored, config, "runs/a")
    config.loss.lpips_dtype = "bfloat16"
    assert check_same_config(stored, config, "runs/a") == []
    config.loss.lpips_dtype = "float32"
    config.train.allow_changes = ("loss.lpips_dtype",)
    told = check_same_config(stored, config, "runs/a")
    assert told == ["loss.lpips_dtype was bfloat16 and is now float32"]


def test_what_changes_no_update_may_change(config):
    stored = config_as_json(config)
    config.train.update(steps=7, microbatches=2, remat="full", eval_every=3)
    config.mesh.update(data=1, fsdp=8)
    config.eval.gt = "elsewhere"
    config.pretrained.estimator = "moved"
    config.data.update(num_threads=1, num_workers=2, max_bad_fraction=0.5)
    check_same_config(stored, config, "runs/a")


def test_export_writes_the_model_of_any_step(tmp_path, config):
    save_steps(tmp_path / "run", config, 1, 2)
    assert export_model(tmp_path / "run", tmp_path / "last") == 2
    assert export_model(tmp_path / "run", tmp_path / "first", step=1) == 1
    for name, step in (("last", 2), ("first", 1)):
        stored, params = load_model(tmp_path / name, check_weights=False)
        expected = {"denoiser": state_after(step, step).ema_params}
        expected["estimator"] = FROZEN["estimator"]
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        assert stored == ModelConfig.of(config)


def test_export_says_what_it_lacks(tmp_path, config):
    with pytest.raises(FileNotFoundError, match="nowhere holds no checkpoints"):
        read_checkpoint(tmp_path / "nowhere")
    save_steps(tmp_path, config, 1, 2)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 3, only of 1, 2"):
        read_checkpoint(tmp_path, 3)
    flip_a_bit(tmp_path / "checkpoints" / "2")
    with pytest.raises(ValueError, match=r"checkpoints/2 is damaged \(.*take another step"):
        export_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5)])
def test_bit_sum_is_the_same_in_both_libraries_and_sees_every_change(shape):
    generator = np.random.default_rng(0)
    x = np.asarray(generator.standard_normal(shape), np.float32)
    total = int(bit_sum(x, np))
    assert int(bit_sum(jnp.asarray(x))) == total
    for index in np.ndindex(shape):
        y = x.copy()
        y[index] = np.nextafter(y[index], np.float32(9))
        assert int(bit_sum(y, np)) != total
