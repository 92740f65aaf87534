"""Train the denoiser or the estimator: on any number of devices and hosts, stopped and resumed."""

import json
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax.cluster.compiler import compiler_options
from upsr_jax.cluster.environment import device_memory
from upsr_jax.cluster.join import create_workdir
from upsr_jax.data.pipeline import check_images, example_names, open_sources, train_batches
from upsr_jax.evaluation.metric_list import PYIQA
from upsr_jax.evaluation.pyiqa_scores import make_host_metrics
from upsr_jax.evaluation.watch import Evaluator
from upsr_jax.files.find import check_local
from upsr_jax.files.whole import DiskFullError, locked, naming_full_disk, write_whole
from upsr_jax.models.config import ModelConfig
from upsr_jax.train.checkpoints import (
    FOLDER,
    check_same_config,
    check_same_images,
    choose_checkpoint,
    explain_failure,
    model_params,
    open_checkpoints,
    restore,
    save,
    tell_last,
)
from upsr_jax.train.config import check_config, check_training, validation_settings
from upsr_jax.train.degradation import create_degrade
from upsr_jax.train.describe import describe_run, log_setup, speed_limits
from upsr_jax.train.meter import Meter
from upsr_jax.train.optimizer import create_optimizer, create_schedule
from upsr_jax.train.sharding import create_mesh, make_gather_fn, replicated, to_global
from upsr_jax.train.state import abstract_state, create_sharded_state, load_frozen
from upsr_jax.train.step import LossFn, make_loss_fn, make_train_step
from upsr_jax.train.writer import Writer
from upsr_jax.weights.model_folder import save_model

logger = logging.getLogger(__name__)


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    profile: tuple[int, int] | None = None,
    make_loss_fn: Callable[[ConfigDict, str], LossFn] = make_loss_fn,
) -> None:
    """Train until config.train.steps, from the last whole checkpoint in `workdir` if there is one.

    Writes checkpoints, metrics.jsonl, TensorBoard events, pictures, the config and environment and,
    at the end, the model folder `workdir/model` with the averaged weights. SIGTERM and SIGINT end
    it early, after a checkpoint; the same call goes on from there. `profile` names the first and
    the last step of a trace that goes into `workdir/profile`. `make_loss_fn` stands in for
    `step.make_loss_fn`, to compute the same in another way.

    Raises:
      FloatingPointError: the loss is not finite, for more steps in a row than may be skipped; names
        the last of them and the batch's examples.
      OSError: a file is missing, or something can't be written; the checkpoints stay whole.
      ValueError: the config asks for what can't be done, or contradicts the run in `workdir`.
    """
    check_local(workdir)
    check_config(config)
    mesh = create_mesh(**config.mesh)
    check_training(config, mesh)
    workdir = Path(workdir).absolute()
    is_main = jax.process_index() == 0
    settings = config.train

    with stop_signals() as signals, own_workdir(workdir), ExitStack() as resources:
        found = choose_checkpoint(workdir)
        skipped, history = 0, []
        if found:
            skipped, history = found.meta["skipped"], [*found.meta["history"]]
            changes = check_same_config(found.meta["config"], config, workdir / FOLDER)
            if changes:
                history.append(f"after step {found.step}: {'; '.join(changes)}")
                logger.warning("this run is changed %s", history[-1])
            if found.step > settings.steps:
                raise ValueError(
                    f"the run in {workdir} has done {found.step} steps, more than "
                    f"config.train.steps = {settings.steps}: set that higher, or start another run "
                    "in another --workdir"
                )
            if found.step == settings.steps and is_finished(workdir):
                logger.info("nothing to do: this run has finished its %d steps", settings.steps)
                return
        process = jax.process_index(), jax.process_count()
        opened = open_sources(config.data)
        images = [source.size for source in opened]
        if found:
            check_same_images(found, images, workdir)
        else:
            check_images(opened, config.data, *process)
        if is_main:
            describe_run(workdir, config)

        learning_rate = create_schedule(**config.schedule)
        optimizer = create_optimizer(learning_rate, **config.optimizer)
        frozen = load_frozen(config, mesh)
        gather_fn = make_gather_fn(mesh)
        evaluators, higher = ({}, {})
        if settings.eval_every:
            evaluators, higher = create_evaluators(config, gather_fn)
        checkpoints = resources.enter_context(open_checkpoints(workdir, config, higher))
        if found:
            shapes = abstract_state(config, optimizer, mesh)
            state = restore(workdir, found, config, shapes, frozen)
        else:
            state = create_sharded_state(config, optimizer, mesh)
        evaluated = found is None or found.meta["evaluated"]
        del found  # whose arrays take the host's memory
        if is_main:
            log_setup(config, mesh, state.params)
        meter = Meter(config.data.batch_size, *speed_limits(config, state.params, frozen), skipped)
        loss_fn = make_loss_fn(config, settings.remat)
        train_step = jax.jit(
            make_train_step(
                loss_fn, optimizer, settings.ema_decay, config.seed, settings.microbatches, mesh
            ),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), replicated(mesh)),
            donate_argnums=0,
            compiler_options=compiler_options(jax.default_backend()),
        )
        degrade_fn = create_degrade(config, mesh) if config.data.degrade_on == "device" else None
        done = first = int(state.step)
        batches = resources.enter_context(
            closing(train_batches(config.data, config.degradation, config.seed, first, *process))
        )
        writer = resources.enter_context(closing(Writer(workdir, first, is_main, config)))
        progress = resources.enter_context(
            tqdm(total=settings.steps, initial=first, unit="step", disable=not is_main)
        )
        pending = None  # terms of the step before, read while the devices work on the next one
        tracing = False
        stop = wished_anywhere(signals)  # before minutes of compilation

        def is_due(every: int) -> bool:
            return every > 0 and (done % every == 0 or done == settings.steps)

        def evaluate() -> dict[str, float] | None:
            with_pyiqa = is_due(settings.eval_every * settings.pyiqa_every)
            params = model_params(config, state.ema_params, frozen)
            return write_evaluation(evaluators, params, signals, done, writer, with_pyiqa)

        if evaluators and not evaluated and is_due(settings.eval_every) and not stop:
            stop = evaluate() is None  # the run was stopped before this
        while done < settings.steps and not stop:
            with meter.waiting():
                batch = next(batches)
            index = batch.pop("index")
            # All processes must stop after the same step: the wish travels with the batch.
            batch["stop"] = np.full(len(index), bool(signals))
            batch = to_global(batch, mesh)
            if profile and done + 1 == max(profile[0], first + 1) <= profile[1]:
                jax.profiler.start_trace(workdir / "profile")
                tracing = True
            with (
                meter.paused(done == first),  # the first call compiles
                jax.transfer_guard("disallow"),  # nothing else goes to the devices unnoticed
            ):
                if degrade_fn:
                    batch = degrade_fn(batch)
                state, terms = train_step(state, frozen, batch)
            done += 1
            progress.update()
            stop = read_terms(pending, meter, workdir, config)
            pending = (done, index, terms)

            log_due, evaluate_due, save_due = map(
                is_due, (settings.log_every, settings.eval_every, settings.checkpoint_every)
            )
            if log_due or evaluate_due or save_due or stop:
                stop = read_terms(pending, meter, workdir, config) or stop
                pending = None
            if profile and tracing and done in (profile[1], settings.steps):
                jax.block_until_ready(terms)
                jax.profiler.stop_trace()
                tracing = False
            if log_due or stop:
                values = meter.summary() | device_memory()
                # The optimizer counts its own steps.
                values["learning_rate"] = float(learning_rate(max(done - 1 - meter.skipped, 0)))
                writer.scalars(done, "train", values)
                loss, speed = values.get("loss", np.nan), values["images_per_second"]
                progress.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
            with meter.paused():
                metrics = {}
                if evaluators and evaluate_due and not stop:  # who ends a run early won't wait
                    metrics = evaluate()
                    stop = metrics is None
                ends = stop or done == settings.steps
                # While steps are skipped, nothing new would push good ones out.
                if ends or (save_due and not meter.in_row):
                    told = metrics, meter.skipped, history
                    save(checkpoints, config, state, frozen, images, *told)
                with explain_failure(checkpoints):
                    checkpoints.check_for_errors()
        if tracing:
            jax.profiler.stop_trace()
        resources.close()  # waits for the last checkpoint
        if done == settings.steps and not stop:
            params = gather_fn(model_params(config, state.ema_params, frozen))
            # Nobody leaves before all have what they gather from each other.
            return finish(workdir, config, jax.block_until_ready(params), done)
        names = " and ".join(signal.Signals(number).name for number in sorted({*signals}))
        logger.info(
            "stopped by %s after step %d%s: the same command goes on from there",
            names or "another process",
            done,
            ", which is saved" if done > first else "",
        )


@contextmanager
def own_workdir(workdir: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it; tell where one that has no room stands."""
    with naming_full_disk(workdir):
        create_workdir(workdir)
    with locked(workdir) if jax.process_index() == 0 else nullcontext():
        try:
            yield
        except DiskFullError as error:
            raise OSError(f"{error}; {tell_last(workdir)}") from error


def wished_anywhere(signals: list[int]) -> bool:
    """Return on every process whether one of them has received a signal."""
    return bool(multihost_utils.process_allgather(np.array(bool(signals))).any())


def is_finished(workdir: Path) -> bool:
    """Return on every process whether process 0 sees that the run has finished."""
    finished = np.array((workdir / "finished").exists())
    return bool(multihost_utils.broadcast_one_to_all(finished))


def create_evaluators(
    config: ConfigDict, gather_fn: Callable[[Any], Any]
) -> tuple[dict[str, Evaluator], dict[str, bool]]:
    """Create what evaluates during training, by the names of config.eval.sets, "" without any.

    Returns them, and whether higher is better of the metrics of pyiqa among theirs. Raises as
    `make_host_metrics` does.
    """
    sets = validation_settings(config)
    pyiqa = make_host_metrics(dict.fromkeys(name for each in sets.values() for name in each.pyiqa))
    evaluators = {
        name: Evaluator(
            ModelConfig.of(config),
            each,
            gather_fn,
            {PYIQA + metric: pyiqa[PYIQA + metric][0] for metric in each.pyiqa},
        )
        for name, each in sets.items()
    }
    return evaluators, {key: higher for key, (_, higher) in pyiqa.items()}


def write_evaluation(
    evaluators: Mapping[str, Evaluator],
    params: Any,
    signals: list[int],
    step: int,
    writer: Writer,
    with_pyiqa: bool,
) -> dict[str, float] | None:
    """Evaluate params on every set, write and return the means as "SET/METRIC", or as "METRIC".

    None if a process wishes to stop instead.
    """
    reports = {}
    for name, evaluator in evaluators.items():
        reports[name] = evaluator(params, partial(wished_anywhere, signals), with_pyiqa)
        if reports[name] is None:
            return None
    means = {}
    for name, report in reports.items():
        means |= {f"{name}/{key}".lstrip("/"): value for key, value in report.means.items()}
        writer.scalars(step, name or "eval", report.means)
        writer.picture(step, name or "eval", report.picture)
    if writer.enabled:
        tqdm.write(f"step {step}: {json.dumps(means)}")
    return means


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list, to act on when it is safe; a second SIGINT aborts."""
    received: list[int] = []

    def receive(number, frame):
        if number in received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if not received:
            logger.warning(
                "%s: ending after the step at hand, with a checkpoint", signal.Signals(number).name
            )
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_terms(pending: tuple | None, meter: Meter, workdir: Path, config: ConfigDict) -> bool:
    """Wait for a step's terms and meter them; return whether a process wishes to stop.

    Raises FloatingPointError, with all that helps, if the parameters are not finite, or the terms
    for more than config.train.max_bad_steps in a row.
    """
    if pending is None:
        return False
    step, index, terms = pending
    values = jax.device_get(terms)
    stop, skipped = (bool(values.pop(name)) for name in ("stop", "skipped"))
    spoiled = not np.isfinite(values["param_norm"])
    if not (skipped or spoiled):
        meter.add(values)
        return stop
    meter.skip()
    scalars = {name: float(value) for name, value in values.items() if value.ndim == 0}
    told = f"step {step} gave {scalars} on {', '.join(example_names(config.data, index))}"
    most = config.train.max_bad_steps
    if spoiled or meter.in_row > most:
        reason = "it spoiled the parameters"
        if not spoiled:
            reason = f"it is bad step {meter.in_row} in a row, config.train.max_bad_steps is {most}"
        raise FloatingPointError(
            f"{told}; {reason}; {tell_last(workdir)}: a lower config.schedule.learning_rate or a "
            "config.optimizer.clip_norm, which config.train.allow_changes has to name, may lead on"
        )
    logger.warning("skipped: %s", told)
    return stop


def finish(workdir: Path, config: ConfigDict, params: Any, step: int) -> None:
    """Write the model folder and, for job scripts, a file that says that the run is finished.

    `params` are the model's, whole on every device.
    """
    if jax.process_index() == 0:
        save_model(workdir / "model", ModelConfig.of(config), params, overwrite=True)
        write_whole(workdir / "finished", f"{step}\n".encode())
        logger.info("model folder: %s", workdir / "model")
