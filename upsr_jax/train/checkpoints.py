"""The checkpoints of a run: everything it needs to go on, and the model it would give.

`workdir/checkpoints/STEP/` holds three items of orbax: "state" (step, parameters and the
optimizer's state), "model" (the averaged weights and what else the model is made of) and "meta"
(the config and sums over the bits of the arrays, by which damage shows).
"""

import errno
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as ocm

from upsr_jax.evaluation.metric_list import METRICS
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.rules import flatten
from upsr_jax.train.config import config_as_json
from upsr_jax.train.sharding import put
from upsr_jax.train.state import TrainState
from upsr_jax.weights.model_folder import save_model

logger = logging.getLogger(__name__)

FOLDER, DAMAGED = "checkpoints", "damaged_checkpoints"
START_ANEW = (
    "start anew in another --workdir, from these weights if you set config.pretrained to what "
    "`upsr export` makes of them"
)
NONE, ALL_DAMAGED = -1, -2  # for a step, where processes agree on one
# What may differ when a run goes on: it changes no example and no update, but for rounding.
MAY_CHANGE = ("eval.", "mesh.", "pretrained.", "train.", "sampler.steps", "data.num_")
MAY_NOT_CHANGE = ("train.ema_decay",)
# Keys that are younger than some checkpoints, with the values that say what those did.
ADDED = {
    "data.scale": [1.0, 1.0],
    "data.rotation": 0.0,
    "loss.lpips_jitter": False,
    "optimizer.muon": False,
}
MOVED = {"degradation.use_sharp": "data.use_sharp"}  # keys that had another name, with today's


class Checkpoint(NamedTuple):
    """One checkpoint, read into the host's memory: NumPy arrays."""

    step: int
    config: ModelConfig
    state: dict[str, Any]
    model: dict[str, Any]


class Found(NamedTuple):
    """The checkpoint that a run goes on from: its step and meta item and, if read, its arrays.

    `arrays` are those of "state" and "model", as NumPy arrays; None where there are several
    processes, each of which is to read only its own part.
    """

    step: int
    meta: dict[str, Any]
    arrays: dict[str, Any] | None


@contextmanager
def open_checkpoints(workdir: Path, config: ConfigDict) -> Iterator[ocp.CheckpointManager]:
    """Open `workdir/checkpoints`, made if missing; what a killed save has left is removed.

    Kept are the last config.train.keep_checkpoints, each whose step is a multiple of keep_every
    (unless 0) and the best by keep_best, a metric of evaluation (unless empty). Leaving waits for
    the checkpoint that is being written; OSError if it can't be.
    """
    metric = config.train.keep_best

    def score(metrics: Mapping[str, float]) -> float:
        value = metrics.get(metric, np.nan)
        if not np.isfinite(value):
            return -np.inf  # not evaluated at this step, or not measurable
        return value if METRICS[metric].higher_is_better else -value

    policies: list[Any] = [ocm.LatestN(config.train.keep_checkpoints)]
    if config.train.keep_every:
        policies.append(ocm.EveryNSteps(config.train.keep_every))
    if metric:
        policies.append(ocm.BestN(get_metric_fn=score, n=1))
    options = ocp.CheckpointManagerOptions(
        best_fn=score if metric else None,  # without it metrics are not written
        preservation_policy=ocm.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
    )
    checkpoints = ocp.CheckpointManager(workdir / FOLDER, options=options)
    try:
        yield checkpoints
    finally:
        with explain_failure(checkpoints):
            checkpoints.close()


def save(
    checkpoints: ocp.CheckpointManager,
    config: ConfigDict,
    state: TrainState,
    frozen: Mapping[str, Any],
    images: Sequence[int],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Start to write a checkpoint; copies are made first, so the state may be donated.

    `images` are the numbers of images in the sources of training, `metrics` those of this step if
    it was evaluated. Raises OSError if this one, or the one before that was still being
    written, can't be.
    """
    items = _items(config, state, frozen)
    sums = _sums_on_host({"state": items["state"], **items["model"]})
    meta = {
        "config": config_as_json(config),
        "sums": sums,
        "images": list(images),
        "evaluated": bool(metrics),
    }
    arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    with explain_failure(checkpoints):
        checkpoints.save(
            int(state.step),
            args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **arrays),
            metrics=metrics or {},
        )


@contextmanager
def explain_failure(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Turn whatever a failed save raises, now or for an earlier one, into an OSError that helps."""
    try:
        yield
    except Exception as error:  # of orbax, tensorstore or the operating system
        whole = sorted(ocp.utils.checkpoint_steps(checkpoints.directory))
        kept = f"that of step {whole[-1]} is whole" if whole else "there is none before it"
        raise OSError(
            f"a checkpoint could not be written into {checkpoints.directory} ({_line(error)}); "
            f"{kept}. Make room or mend the disk, then run the same command again to go on"
        ) from error


def choose_checkpoint(workdir: Path) -> Found | None:
    """Find the newest whole checkpoint of a run; None if it has none.

    Damaged ones that are newer are reported and moved into a folder beside, as they would stand in
    the way of new ones; so are older ones whose metrics the manager could not read. Process 0
    looks, and decides for all processes. Raises ValueError if there are checkpoints but all of them
    are damaged, OSError if they can't be read for now; nothing is moved then.
    """
    found, damage = None, {}
    if jax.process_index() == 0:
        found, damage = _find_whole(workdir / FOLDER)
    chosen = found.step if found else ALL_DAMAGED if damage else NONE
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen == ALL_DAMAGED:
        reasons = "".join(f"; step {step}: {reason}" for step, reason in damage.items())
        raise ValueError(
            f"all checkpoints in {workdir / FOLDER} are damaged: bring back a copy of them, or "
            f"start again with another --workdir{reasons}"
        )
    if chosen == NONE:
        return None
    if found and jax.process_count() == 1:
        return found
    # Only process 0 has seen that the arrays are whole, and no process needs all of them.
    return Found(chosen, _read_meta(workdir / FOLDER / str(chosen)), None)


def _find_whole(folder: Path) -> tuple[Found | None, dict[int, str]]:
    steps = sorted(ocp.utils.checkpoint_steps(folder), reverse=True) if folder.is_dir() else []
    found, damage = None, {}
    for step in steps:
        try:
            if found is None:
                found = Found(step, *_read(folder / str(step)))
            else:
                _read_metrics(folder / str(step))
        except Exception as error:  # damaged files make the libraries below raise anything
            damage[step] = _damage(folder / str(step), error)
    if found is None:
        return None, damage
    for step, reason in damage.items():
        aside = folder.with_name(DAMAGED) / f"{step}_{time.strftime('%Y%m%d_%H%M%S')}"
        aside.parent.mkdir(exist_ok=True)
        (folder / str(step)).rename(aside)
        logger.warning(
            "the checkpoint of step %d is damaged (%s): moved to %s", step, reason, aside
        )
    return found, damage


def check_images(found: Found, images: Sequence[int], workdir: Path) -> None:
    """Raise ValueError unless the sources of training hold as many images as at a checkpoint."""
    before = found.meta["images"]
    if before not in (None, list(images)):
        raise ValueError(
            f"the images of config.data were {_counts(before)} when the run in {workdir} began and "
            f"are {_counts(images)} now, which would come in another order: bring the same images "
            f"back to go on, or {START_ANEW}"
        )


def restore(
    checkpoints: ocp.CheckpointManager,
    found: Found,
    config: ConfigDict,
    state: TrainState,
    frozen: Mapping[str, Any],
) -> TrainState:
    """Restore a checkpoint, placed like `state`, a tree of shapes with shardings.

    Raises ValueError if the frozen estimator is not the one that the run began with.
    """
    if config.network == "denoiser":
        estimator = _sums_on_host({"estimator": frozen["estimator"]})["estimator"]
        if estimator != found.meta["sums"]["estimator"]:
            raise ValueError(
                f"the estimator in config.pretrained.estimator = {config.pretrained.estimator} is "
                "not the one that this run began with: name that one, or another --workdir"
            )
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _items(config, state, frozen))
    if found.arrays is None:
        args = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        items = checkpoints.restore(found.step, args=ocp.args.Composite(**args))
    else:
        # On the disk every node of a tree is a mapping or a sequence.
        arrays = ocp.tree.deserialize_tree(found.arrays, shapes)
        items = put(arrays, jax.tree.map(lambda x: x.sharding, shapes))
    logger.info("going on after step %d", found.step)
    return TrainState(ema_params=items["model"][config.network], **items["state"])


def read_checkpoint(workdir: str | Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint of a run, the last by default, into this host's memory.

    Raises FileNotFoundError if the run has no such checkpoint, ValueError if it is damaged, OSError
    if it can't be read for now.
    """
    folder = Path(workdir).absolute() / FOLDER
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    if not steps:
        raise FileNotFoundError(f"{workdir} holds no checkpoints: give the --workdir of a run")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}"
        )
    try:
        meta, items = _read(folder / str(step))
    except Exception as error:  # damaged files make the libraries below raise anything
        damage = _damage(folder / str(step), error)
        raise ValueError(
            f"{folder / str(step)} is damaged ({damage}): take another step"
        ) from error
    return Checkpoint(step, ModelConfig.of(meta["config"]), items["state"], items["model"])


def export_model(
    workdir: str | Path, folder: str | Path, step: int | None = None, overwrite: bool = False
) -> int:
    """Write the model folder of a run's checkpoint, the last by default; return its step.

    Raises what `read_checkpoint` and `model_folder.save_model` raise.
    """
    checkpoint = read_checkpoint(workdir, step)
    save_model(folder, checkpoint.config, checkpoint.model, overwrite)
    return checkpoint.step


def model_params(config: ConfigDict, ema_params: Any, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Join the averaged weights and the frozen estimator into one model's params."""
    if config.network == "estimator":
        return {"estimator": ema_params}
    return {"denoiser": ema_params, "estimator": frozen["estimator"]}


def check_same_config(stored: Mapping[str, Any], config: ConfigDict, folder: Any) -> None:
    """Raise ValueError where the config would not continue the run that `stored` began."""
    began = ADDED | {MOVED.get(key, key): value for key, value in flatten(stored).items()}
    before, now = (
        {
            key: value
            for key, value in flatten(tree).items()
            if not key.startswith(MAY_CHANGE) or key in MAY_NOT_CHANGE
        }
        for tree in (began, config_as_json(config))
    )
    changes = [
        f"{key} was {before.get(key)} and is now {now.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changes:
        raise ValueError(
            f"the config contradicts the checkpoints in {folder}: {'; '.join(changes)}. Set it "
            f"back to go on, or {START_ANEW}"
        )


def bit_sum(x: Any, xp: Any = jnp) -> Any:
    """Add up the bits of an array of 4-byte elements, as integers modulo 2^32.

    In whatever order, the sum is the same: it doesn't depend on how devices share the array. `xp`
    is the array library, jax.numpy or numpy. Returns a uint32.
    """
    return x.view(xp.uint32).sum(dtype=xp.uint32)


def _items(config: ConfigDict, state: TrainState, frozen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": {"step": state.step, "params": state.params, "opt_state": state.opt_state},
        "model": model_params(config, state.ema_params, frozen),
    }


def _sums_on_host(trees: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(total) for name, total in jax.device_get(_sums(trees)).items()}


@jax.jit
def _sums(trees: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: sum(map(bit_sum, jax.tree.leaves(tree)), start=jnp.uint32(0))
        for name, tree in trees.items()
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint on this process alone and compare the sums."""
    meta = _read_meta(folder)
    _read_metrics(folder)
    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
        items = {}
        for name in ("state", "model"):
            tree = handler.metadata(folder / name).tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restore_args = ocp.args.PyTreeRestore(restore_args=as_numpy)
            items[name] = checkpointer.restore(folder / name, args=restore_args)
    trees = {"state": items["state"], **items["model"]}
    if trees.keys() != meta["sums"].keys():
        raise ValueError(f"it holds {', '.join(trees)} instead of {', '.join(meta['sums'])}")
    for name, tree in trees.items():
        if sum(int(bit_sum(x, np)) for x in jax.tree.leaves(tree)) % 2**32 != meta["sums"][name]:
            raise ValueError(f"the arrays of {name} have changed since they were written")
    return meta, items


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read the meta item; what some checkpoints are too old to tell is None, or as if done."""
    younger = {"images": None, "evaluated": True}
    return younger | json.loads((folder / "meta" / "metadata").read_text())


def _read_metrics(folder: Path) -> None:
    """Read as the manager will, of each checkpoint that has any."""
    with suppress(FileNotFoundError):
        json.loads((folder / "metrics" / "metrics").read_text())


def _counts(images: Sequence[int]) -> str:
    return " + ".join(f"{count:,}" for count in images)


def _damage(folder: Path, error: Exception) -> str:
    """Name the damage that made reading fail; raise OSError if it was trouble that may pass."""
    # Tensorstore tells the operating system's errors by their text alone.
    told = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    missing = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    if isinstance(error, MemoryError) or number not in (None, *missing):
        raise OSError(
            f"{folder} can't be read for now ({_line(error)}): see to that, then run the same "
            "command again; if it stays so, move that folder away to do without it"
        ) from error
    return _line(error)


def _line(error: Exception) -> str:
    """Cut an error's text to its first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
