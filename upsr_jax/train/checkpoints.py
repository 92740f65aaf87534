"""The checkpoints of a run: everything it needs to go on, and the model it would give.

`workdir/checkpoints/STEP/` holds three items of orbax: "state" (step, parameters and the
optimizer's state), "model" (the averaged weights and what else the model is made of) and "meta"
(the config, the run's history, and sums over the bits of the arrays, by which damage shows).
"""

import dataclasses
import errno
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as ocm

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.evaluation.metric_list import METRICS
from upsr_jax.files.find import check_local
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.rules import flatten
from upsr_jax.train.config import ALLOWABLE, best_weights, config_as_json
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
MAY_CHANGE = (
    *("eval.", "mesh.", "pretrained.", "train.", "wandb.", "sampler.steps", "data.num_"),
    *("sampler.spacing", "data.max_bad_fraction"),
)
MAY_NOT_CHANGE = ("train.ema_decay",)
# Keys that are younger than some checkpoints, with the values that say what those did.
ADDED = {
    "data.scale": [1.0, 1.0],
    "data.rotation": 0.0,
    "data.pool": 0,
    "data.degrade_on": "host",
    "degradation.simulated_jpeg": False,
    "loss.lpips_jitter": False,
    "loss.ssim_weight": 0.0,
    "loss.consistency_weight": 0.0,
    "prior.estimate": "network",
    "prior.condition": "estimate",
    "optimizer.muon": False,
    "schedule.restarts": [],
    "schedule.milestones": [],
    "schedule.gamma": 0.5,
}
MOVED = {"degradation.use_sharp": "data.use_sharp"}  # keys that had another name, with today's
# The keys of a meta item, with what those that are too old to have them mean: unknown, or as if
# done. Still older ones have no sum of their own.
META = {
    **{"config": None, "sums": None, "images": None, "teacher": None},
    **{"evaluated": True, "skipped": 0, "history": []},
}


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


def quiet_orbax() -> None:
    """Keep orbax from filling a program's screen with tracebacks of what is raised here as well."""
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def report(unraisable: Any) -> None:
        # Of each array that could not be read or written, to whom nobody listens any more.
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = report


@contextmanager
def open_checkpoints(
    workdir: Path, config: ConfigDict, higher_is_better: Mapping[str, bool] = MappingProxyType({})
) -> Iterator[ocp.CheckpointManager]:
    """Open `workdir/checkpoints`, made if missing; what a killed save has left is removed.

    Kept are the last config.train.keep_checkpoints, each whose step is a multiple of keep_every
    (unless 0) and the best by keep_best (unless empty): of the highest sum of WEIGHT * METRIC,
    taken off where lower is better. `higher_is_better` says so of metrics that are not ours.
    Leaving waits for the checkpoint that is being written; OSError if it can't be.
    """
    higher = {name: metric.higher_is_better for name, metric in METRICS.items()}
    higher.update(higher_is_better)
    weights = {
        name: weight if higher[name.rpartition("/")[2]] else -weight
        for name, weight in best_weights(config.train.keep_best).items()
    }

    def score(metrics: Mapping[str, float]) -> float:
        total = sum(weight * metrics.get(name, np.nan) for name, weight in weights.items())
        return total if np.isfinite(total) else -np.inf  # not evaluated then, or not measurable

    policies: list[Any] = [ocm.LatestN(config.train.keep_checkpoints)]
    if config.train.keep_every:
        policies.append(ocm.EveryNSteps(config.train.keep_every))
    if weights:
        policies.append(ocm.BestN(get_metric_fn=score, n=1))
    options = ocp.CheckpointManagerOptions(
        best_fn=score if weights else None,  # without it metrics are not written
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
    skipped: int = 0,
    history: Sequence[str] = (),
) -> None:
    """Start to write a checkpoint; copies are made first, so the state may be donated.

    `images` are the numbers of images in the sources of training, `metrics` those of this step if
    it was evaluated, `skipped` how many steps changed nothing, `history` what else happened to the
    run, in sentences. Raises OSError if this one, or the one before that was still being written,
    can't be.
    """
    items = _items(config, state, frozen)
    meta = {
        "config": config_as_json(config),
        "sums": _sum_arrays(_trees(items)),
        "teacher": _sum_teacher(frozen),
        "images": list(images),
        "evaluated": bool(metrics),
        "skipped": skipped,
        "history": list(history),
    }
    meta["sha256"] = _sum_meta(meta)
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
        raise OSError(
            f"a checkpoint could not be written into {checkpoints.directory} ({_line(error)}); "
            f"{tell_last(Path(checkpoints.directory).parent)}. Make room or mend the disk, then "
            "run the same command again to go on"
        ) from error


def tell_last(workdir: Path) -> str:
    """Say which checkpoint a run would go on from."""
    steps = _steps(workdir / FOLDER)
    if not steps:
        return "there is no checkpoint yet"
    return f"the last checkpoint is that of step {max(steps)}"


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


def _steps(folder: Path) -> list[int]:
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def _find_whole(folder: Path) -> tuple[Found | None, dict[int, str]]:
    steps = sorted(_steps(folder), reverse=True)
    found, damage = None, {}
    for step in steps:
        try:
            if found is None:
                found = Found(step, *_read(folder / str(step)))
            else:
                _read_metrics(folder / str(step))
        except ValueError as error:
            damage[step] = str(error)
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


def check_same_images(found: Found, images: Sequence[int], workdir: Path) -> None:
    """Raise ValueError unless the sources of training hold as many images as at a checkpoint."""
    before = found.meta["images"]
    if before not in (None, list(images)):
        raise ValueError(
            f"the images of config.data were {_counts(before)} when the run in {workdir} began and "
            f"are {_counts(images)} now, which would come in another order: bring the same images "
            f"back to go on, or {START_ANEW}"
        )


def restore(
    workdir: Path, found: Found, config: ConfigDict, state: TrainState, frozen: Mapping[str, Any]
) -> TrainState:
    """Restore a checkpoint, placed like `state`, a tree of shapes with shardings.

    Raises ValueError if the frozen estimator or teacher is not the one that the run began with, or
    the state is not that of this config and program.
    """
    if _sum_teacher(frozen) != found.meta["teacher"]:
        raise ValueError(
            f"config.pretrained.teacher = {config.pretrained.teacher!r} is not what this run began "
            "with: name the same teacher, or none as before, or another --workdir"
        )
    if "estimator" in frozen:
        stored = found.meta["sums"].items()
        stored = {name: total for name, total in stored if name.startswith("estimator")}
        if _differences(_sum_arrays({"estimator": frozen["estimator"]}), stored):
            raise ValueError(
                f"the estimator in config.pretrained.estimator = {config.pretrained.estimator} is "
                "not the one that this run began with: name that one, or another --workdir"
            )
    folder = workdir / FOLDER / str(found.step)
    clipped, clips = (bool(c["optimizer"]["clip_norm"]) for c in (found.meta["config"], config))
    state = _change_clipping(state, clips, clipped)
    shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _items(config, state, frozen))
    try:
        with _explaining(folder, "state and model"):
            if found.arrays is None:
                items = _read_parts(folder, shapes)
            else:
                # On the disk every node of a tree is a mapping or a sequence.
                arrays = ocp.tree.deserialize_tree(found.arrays, shapes)
                items = put(arrays, jax.tree.map(lambda x: x.sharding, shapes))
    except ValueError as error:
        raise ValueError(
            f"{folder} is not what this program restores ({error}): go on with the version that "
            f"wrote it, or {START_ANEW}"
        ) from error
    state = TrainState(ema_params=items["model"][config.network], **items["state"])
    logger.info("going on after step %d", found.step)
    return _change_clipping(state, clipped, clips)


def _change_clipping(state: TrainState, before: bool, now: bool) -> TrainState:
    """Clipping has no state of its own, but with it the optimizer's lies one level deeper."""
    opt_state = state.opt_state
    if now and not before:
        opt_state = optax.EmptyState(), opt_state
    elif before and not now:
        opt_state = opt_state[1]
    return dataclasses.replace(state, opt_state=opt_state)


def read_checkpoint(workdir: str | Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint of a run, the last by default, into this host's memory.

    Raises FileNotFoundError if the run has no such checkpoint, ValueError if it is damaged, OSError
    if it can't be read for now.
    """
    check_local(workdir)
    folder = Path(workdir).absolute() / FOLDER
    steps = sorted(_steps(folder))
    if not steps:
        raise FileNotFoundError(f"{workdir} holds no checkpoints: give the --workdir of a run")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise FileNotFoundError(
            f"{workdir} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}"
        )
    try:
        meta, items = _read(folder / str(step))
    except ValueError as error:
        raise ValueError(f"{folder / str(step)} is damaged ({error}): take another step") from error
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
    return {"denoiser": ema_params} | {k: v for k, v in frozen.items() if k == "estimator"}


def check_same_config(stored: Mapping[str, Any], config: ConfigDict, folder: Any) -> list[str]:
    """Return what config.train.allow_changes lets differ from the run that `stored` began.

    Raises ValueError where the config would not continue that run.
    """
    began = {MOVED.get(key, key): value for key, value in flatten(stored).items()}
    # LPIPS was computed in the networks' arithmetic before it had a type of its own.
    began = ADDED | {"loss.lpips_dtype": began.get("dtype")} | began
    before, now = (
        {
            key: value
            for key, value in flatten(tree).items()
            if not key.startswith(MAY_CHANGE) or key in MAY_NOT_CHANGE
        }
        for tree in (began, config_as_json(config))
    )
    changes = {
        key: f"{key} was {before.get(key)} and is now {now.get(key)}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    }
    refused = [key for key in changes if not key.startswith(tuple(config.train.allow_changes))]
    if refused:
        cure = f"Set it back to go on, or {START_ANEW}"
        allowable = [name for name in ALLOWABLE if any(key.startswith(name) for key in refused)]
        if allowable and all(key.startswith(ALLOWABLE) for key in refused):
            cure = f"Set it back to go on, or config.train.allow_changes to {tuple(allowable)}"
        raise ValueError(
            f"the config contradicts the checkpoints in {folder}: "
            f"{'; '.join(changes[key] for key in refused)}. {cure}"
        )
    return list(changes.values())


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


def _trees(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"state": items["state"], **items["model"]}


def _by_name(trees: Mapping[str, Any]) -> dict[str, Any]:
    """Name every array, as "state/params/stem/kernel float32(3, 3, 3, 32)"."""
    flat = ocp.tree.to_flat_dict(trees, sep="/")
    return {f"{path} {x.dtype}{x.shape}": x for path, x in flat.items()}


def _sum_arrays(trees: Mapping[str, Any]) -> dict[str, int]:
    """Sum the bits of every array on the devices."""
    arrays = _by_name(trees)
    sums = jax.jit(_sums, compiler_options=compiler_options(jax.default_backend()))
    return dict(zip(arrays, jax.device_get(sums(list(arrays.values()))).tolist(), strict=True))


def _sum_teacher(frozen: Mapping[str, Any]) -> str | None:
    """Sum up a teacher, which is in no checkpoint, in one text; None if there is none."""
    if "teacher" not in frozen:
        return None
    return _sum_meta(_sum_arrays({"teacher": frozen["teacher"]}))


def _sums(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([bit_sum(x) for x in arrays])


def _differences(sums: Mapping[str, int], stored: Mapping[str, int]) -> list[str]:
    """Name the arrays whose sums, dtypes or shapes are not those that were stored."""
    if not any("/" in name for name in stored):  # older checkpoints: one sum for each tree
        totals = dict.fromkeys((name.partition("/")[0] for name in sums), 0)
        for name, total in sums.items():
            tree = name.partition("/")[0]
            totals[tree] = (totals[tree] + total) % 2**32
        sums = totals
    names = sorted(sums.keys() | stored.keys())
    return [name for name in names if sums.get(name) != stored.get(name)]


def _sum_meta(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint on this process alone and compare the sums.

    Raises ValueError, naming the file or the array, if it is damaged, and OSError if it can't be
    read for now.
    """
    meta = _read_meta(folder)
    _read_metrics(folder)
    items = {}
    with _open_reader() as (handler, reader):
        for name in ("state", "model"):
            with _explaining(folder, name):
                tree = handler.metadata(folder / name).tree
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                restore_args = ocp.args.PyTreeRestore(restore_args=as_numpy)
                items[name] = reader.restore(folder / name, args=restore_args)
    with _explaining(folder, "state and model"):
        sums = {name: int(bit_sum(x, np)) for name, x in _by_name(_trees(items)).items()}
    if changed := _differences(sums, meta["sums"]):
        raise ValueError(f"the array {changed[0]} has changed since it was written")
    return meta, items


def _read_parts(folder: Path, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parts of a checkpoint's arrays that this process's devices hold."""
    with _open_reader() as (_, reader):
        return {
            name: reader.restore(
                folder / name,
                args=ocp.args.PyTreeRestore(
                    item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
                ),
            )
            for name, tree in shapes.items()
        }


@contextmanager
def _open_reader() -> Iterator[tuple[ocp.PyTreeCheckpointHandler, ocp.Checkpointer]]:
    """Open what reads trees of arrays without a word to other processes."""
    options = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    # By itself it would read `array_metadatas` too, which says nothing that is needed here.
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler()),
        (jax.Array, ocp.type_handlers.ArrayHandler(array_metadata_store=None)),
    )
    handler = ocp.PyTreeCheckpointHandler(
        multiprocessing_options=options, type_handler_registry=registry
    )
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        yield handler, reader


def _read_meta(folder: Path) -> dict[str, Any]:
    """Read the meta item; what some checkpoints are too old to tell is as META says."""
    name = "meta/metadata"
    with _explaining(folder, name):
        meta = json.loads((folder / name).read_text())
        total = meta.pop("sha256", None)
        # Without a sum it is an old one, and not one whose sum's name is damaged.
        if total != (_sum_meta(meta) if total or meta.keys() - META.keys() else None):
            raise ValueError("it has changed since it was written")
    return META | meta


def _read_metrics(folder: Path) -> None:
    """Read as the manager will, of each checkpoint that has any."""
    name = "metrics/metrics"
    with _explaining(folder, name), suppress(FileNotFoundError):
        json.loads((folder / name).read_text())


def _counts(images: Sequence[int]) -> str:
    return " + ".join(f"{count:,}" for count in images)


@contextmanager
def _explaining(folder: Path, name: str) -> Iterator[None]:
    """Name what was read in a ValueError if it is damaged; in an OSError if that may pass."""
    try:
        yield
    except Exception as error:  # damaged files make the libraries below raise anything
        # Tensorstore tells the operating system's errors by their text alone.
        told = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(told[1]) if told else getattr(error, "errno", None)
        missing = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
        if isinstance(error, MemoryError) or number not in (None, *missing):
            raise OSError(
                f"{folder} can't be read for now ({_line(error)}): see to that, then run the same "
                "command again; if it stays so, move that folder away to do without it"
            ) from error
        raise ValueError(f"{folder / name}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Cut an error's text to its first line; names of arrays' files hold what can't be printed."""
    line = next(iter(str(error).splitlines()), type(error).__name__)[:300]
    return "".join(filter(str.isprintable, line))
