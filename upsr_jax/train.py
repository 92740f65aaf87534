"""Train the denoiser or the estimator: on any number of devices and hosts, stopped and resumed."""

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax import run_checkpoints
from upsr_jax.config import check_config
from upsr_jax.data.pipeline import train_batches
from upsr_jax.evaluate import Evaluator
from upsr_jax.meter import Meter
from upsr_jax.optimizer import create_optimizer, create_schedule
from upsr_jax.run_checkpoints import export_model, model_params, open_checkpoints
from upsr_jax.run_info import device_memory
from upsr_jax.run_setup import (
    check_batch,
    create_sharded_state,
    init_params,
    load_frozen,
    log_setup,
    prepare_workdir,
    speed_limits,
)
from upsr_jax.sharding import create_mesh, replicated, to_global
from upsr_jax.train_step import make_loss_fn, make_train_step
from upsr_jax.writer import Writer

logger = logging.getLogger(__name__)


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, profile: tuple[int, int] | None = None
) -> None:
    """Train until config.train.steps, from the last whole checkpoint in `workdir` if there is one.

    Writes checkpoints, metrics.jsonl, TensorBoard events, pictures, the config and environment and,
    at the end, the model folder `workdir/model` with the averaged weights. SIGTERM and SIGINT end
    it early, after a checkpoint; the same call goes on from there. `profile` names the first and
    the last step of a trace that goes into `workdir/profile`.

    Raises:
      FloatingPointError: the loss is not finite; names the step and the batch's examples.
      OSError: a file is missing, or something can't be written; the checkpoints stay whole.
      ValueError: the config asks for what can't be done, or contradicts the run in `workdir`.
    """
    check_config(config)
    mesh = create_mesh(**config.mesh)
    check_batch(config, mesh)
    workdir = Path(workdir).absolute()
    prepare_workdir(workdir, config)
    is_main = jax.process_index() == 0
    process = jax.process_index(), jax.process_count()
    settings = config.train

    with open_checkpoints(workdir, config) as checkpoints:
        if (checkpoints.latest_step() or 0) >= settings.steps:
            run_checkpoints.check_config_of_last(checkpoints, config)
            logger.info("nothing to do: this run has finished its %d steps", settings.steps)
            return finish(workdir)

        learning_rate = create_schedule(**config.schedule)
        optimizer = create_optimizer(learning_rate, **config.optimizer)
        frozen = load_frozen(config, mesh)
        state = create_sharded_state(init_params(config, mesh), optimizer, mesh)
        if is_main:
            log_setup(config, mesh, state.params)
        state = run_checkpoints.restore(checkpoints, config, state, frozen)
        first = int(state.step) + 1
        evaluator = Evaluator(config, mesh) if settings.eval_every else None
        meter = Meter(config.data.batch_size, *speed_limits(config, state, frozen, mesh))
        loss_fn = make_loss_fn(config, settings.remat)
        train_step = jax.jit(
            make_train_step(
                loss_fn, optimizer, settings.ema_decay, config.seed, settings.microbatches, mesh
            ),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), replicated(mesh)),
            donate_argnums=0,
        )
        pending = None  # terms of the step before, read while the devices work on the next one
        stop = False

        with (
            stop_signals() as signals,
            closing(
                train_batches(config.data, config.degradation, config.seed, first - 1, *process)
            ) as batches,
            closing(Writer(workdir, first - 1, enabled=is_main)) as writer,
            tqdm(
                total=settings.steps, initial=first - 1, unit="step", disable=not is_main
            ) as progress,
        ):
            for step in range(first, settings.steps + 1):
                with meter.waiting():
                    batch = next(batches)
                index = batch.pop("index")
                # All processes must stop after the same step: the wish travels with the batch.
                batch["stop"] = np.full(len(index), bool(signals))
                batch = to_global(batch, mesh)
                if profile and step == profile[0]:
                    jax.profiler.start_trace(workdir / "profile")
                with (
                    meter.paused(step == first),  # the first call compiles
                    jax.transfer_guard("disallow"),  # nothing else goes to the devices
                ):
                    state, terms = train_step(state, frozen, batch)
                stop = read_terms(pending, meter, checkpoints) or stop
                pending = (step, index, terms)
                progress.update()

                last = stop or step == settings.steps
                log, evaluate, save = (
                    every > 0 and (last or step % every == 0)
                    for every in (
                        settings.log_every,
                        settings.eval_every,
                        settings.checkpoint_every,
                    )
                )
                profiled = profile and profile[0] <= step and (last or step == profile[1])
                if log or evaluate or save or profiled:
                    stop = read_terms(pending, meter, checkpoints) or stop  # after the next step
                    pending = None
                if profiled:
                    jax.profiler.stop_trace()
                    profile = None
                if log:
                    values = meter.summary() | device_memory()
                    values["learning_rate"] = float(learning_rate(step - 1))
                    writer.scalars(step, "train", values)
                    progress.set_postfix_str(
                        f"loss {values['loss']:.4f}, {values['images_per_second']:.1f} images/s"
                    )
                with meter.paused():
                    means = None
                    if evaluator and evaluate and not stop:  # who ends a run early won't wait
                        report = evaluator(model_params(config, state.ema_params, frozen))
                        means = report.means
                        writer.scalars(step, "eval", means)
                        writer.picture(step, "eval", report.picture)
                        if is_main:
                            progress.write(f"step {step}: {json.dumps(means)}")
                    if save:
                        run_checkpoints.save(checkpoints, config, state, frozen, means)
                    with run_checkpoints.explain_failure(checkpoints):
                        checkpoints.check_for_errors()
                if last:
                    break
            names = " and ".join(signal.Signals(number).name for number in signals)
    if step < settings.steps:
        logger.info(
            "stopped by %s after step %d, which is saved: the same command goes on from there",
            names or "another process",
            step,
        )
    else:
        finish(workdir)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list; a second one of a kind acts as it always does."""
    received: list[int] = []

    def receive(number, frame):
        del frame
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_terms(pending: tuple | None, meter: Meter, checkpoints: ocp.CheckpointManager) -> bool:
    """Wait for a step's terms and meter them; return whether a process wishes to stop.

    Raises FloatingPointError, with all that helps, if one is not finite.
    """
    if pending is None:
        return False
    step, index, terms = pending
    values = jax.device_get(terms)
    stop = bool(values.pop("stop"))
    if not all(np.isfinite(value).all() for value in values.values()):
        latest = checkpoints.latest_step()
        good = "there is no checkpoint yet"
        if latest is not None:
            good = f"the last good checkpoint is that of step {latest}"
        scalars = {name: float(value) for name, value in values.items() if value.ndim == 0}
        raise FloatingPointError(f"step {step} gave {scalars} on examples {index.tolist()}; {good}")
    meter.add(values)
    return stop


def finish(workdir: Path) -> None:
    """Write the model folder and, for job scripts, a file that says that the run is finished."""
    if jax.process_index() == 0:
        step = export_model(workdir, workdir / "model", overwrite=True)
        (workdir / "finished").write_text(f"{step}\n")
        logger.info("model folder: %s", workdir / "model")
