"""Train the denoiser or the estimator, with evaluation, checkpoints and exact resumption."""

import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from clu import parameter_overview
from ml_collections import ConfigDict
from tqdm import tqdm

from upsr_jax.checkpoint import save_model
from upsr_jax.data.pipeline import train_batches
from upsr_jax.diffusion import Schedule
from upsr_jax.evaluate import Evaluator
from upsr_jax.losses import diffusion_loss, estimator_loss
from upsr_jax.models.lpips import LPIPS
from upsr_jax.networks import (
    apply,
    create_denoiser,
    create_estimator,
    init_denoiser,
    init_estimator,
)
from upsr_jax.optimizer import create_optimizer, create_schedule
from upsr_jax.pretrained import load_lpips_vgg, load_networks
from upsr_jax.prior import make_prior
from upsr_jax.sharding import create_mesh, replicated, split_batch, to_global
from upsr_jax.state import TrainState, apply_gradients, create_state
from upsr_jax.writer import Writer

logger = logging.getLogger(__name__)

LossFn = Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, dict]]


def make_loss_fn(config: ConfigDict) -> LossFn:
    """Build `(params, frozen, batch, key) -> (loss, terms)` of the network that is trained.

    `frozen` holds the weights that don't learn: "lpips", and "estimator" beside the denoiser.
    """
    estimator = create_estimator(config)
    lpips = LPIPS(dtype=config.dtype)
    weight = config.loss.lpips_weight

    def lpips_of(frozen: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
        def distance(image: jax.Array, reference: jax.Array) -> jax.Array:
            if config.loss.released_lpips_range:  # the released training fed it 2x - 1 of signed x
                image, reference = 2 * image - 1, 2 * reference - 1
            return apply(lpips, frozen["lpips"], image, reference)

        return distance

    if config.network == "estimator":

        def loss_of_estimator(params, frozen, batch, key):
            del key
            return estimator_loss(
                lambda image: apply(estimator, params, image),
                lpips_of(frozen),
                batch["lr"],
                batch["hr"],
                weight,
            )

        return loss_of_estimator

    denoiser = create_denoiser(config)
    schedule = Schedule.create(**config.diffusion)
    # A one-step model is never asked for another step than the last.
    first_step = config.diffusion.steps - 1 if config.sampler.method == "one_step" else 0

    def loss_of_denoiser(params, frozen, batch, key):
        prior = make_prior(
            lambda image: apply(estimator, frozen["estimator"], image),
            batch["lr"],
            **config.prior,
        )
        key_t, key_noise = jax.random.split(key)
        hr = batch["hr"]
        return diffusion_loss(
            schedule,
            lambda x_t, t, condition: apply(denoiser, params, x_t, t, condition),
            lpips_of(frozen),
            prior,
            hr,
            noise=jax.random.normal(key_noise, hr.shape),
            t=jax.random.randint(key_t, hr.shape[:1], first_step, config.diffusion.steps),
            lpips_weight=weight,
        )

    return loss_of_denoiser


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, ema_decay: float, seed: int
) -> Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, dict]]:
    """Build one update `(state, frozen, batch) -> (state, terms)`, random by (seed, step) alone."""

    def train_step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, terms = jax.grad(loss_fn, has_aux=True)(state.params, frozen, batch, key)
        state = apply_gradients(state, grads, optimizer, ema_decay)
        # The new parameters' norm, too: no step that spoils them goes into a checkpoint.
        norms = {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(state.params)}
        return state, terms | norms

    return train_step


def load_frozen(config: ConfigDict) -> dict[str, Any]:
    """Load the weights that the loss needs and that don't learn."""
    frozen = {}
    if config.loss.lpips_weight:
        frozen["lpips"] = load_lpips_vgg()
    if config.network == "denoiser":
        frozen["estimator"] = load_part(config, "estimator")
    return frozen


def load_part(config: ConfigDict, part: str) -> Any:
    """Load one network, "denoiser" or "estimator", from the model folder config.pretrained names.

    Raises ValueError if none is named, or if its network is missing or another than the config's.
    """
    folder = config.pretrained[part]
    if not folder:
        raise ValueError(
            f"training the denoiser needs a trained {part}: set config.pretrained.{part} to a "
            "model folder, trained with configs/estimator_x4.py or converted with `upsr convert`"
        )
    return load_networks(folder, config, [part])[part]


def init_params(config: ConfigDict) -> Any:
    """Draw the trained network's first parameters, or load those config.pretrained names."""
    if config.pretrained[config.network]:
        return load_part(config, config.network)
    key = jax.random.fold_in(jax.random.key(config.seed), 0x1217)
    init_fn, block = {
        "estimator": (init_estimator, config.estimator),
        "denoiser": (init_denoiser, config.model),
    }[config.network]
    return jax.jit(lambda key: init_fn(key, block))(key)


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> None:
    """Train until config.train.steps, from the last checkpoint in `workdir` if there is one.

    Writes checkpoints, metrics.jsonl, tensorboard events, pictures and, with every checkpoint, the
    model folder `workdir/model` with the averaged weights.

    Raises:
      FloatingPointError: the loss is not finite; names the step and the batch's examples.
      ValueError: the config asks for what can't be done, such as a batch that can't be split.
    """
    if config.data.batch_size % jax.device_count():
        raise ValueError(
            f"a batch of {config.data.batch_size} can't be split evenly over {jax.device_count()} "
            "devices: set config.data.batch_size to a multiple of them"
        )
    workdir = Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    is_main = jax.process_index() == 0
    if is_main:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    mesh = create_mesh()

    learning_rate = create_schedule(**config.schedule)
    optimizer = create_optimizer(learning_rate, **config.optimizer)
    frozen = jax.device_put(load_frozen(config), replicated(mesh))
    evaluator = Evaluator(config)
    state = jax.device_put(create_state(init_params(config), optimizer), replicated(mesh))
    if is_main:
        logger.info("\n%s", parameter_overview.get_parameter_overview(state.params))

    options = ocp.CheckpointManagerOptions(max_to_keep=config.train.keep_checkpoints)
    checkpoints = ocp.CheckpointManager(workdir / "checkpoints", options=options)
    if (latest := checkpoints.latest_step()) is not None:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = checkpoints.restore(latest, args=ocp.args.StandardRestore(abstract))
        logger.info("resumed after step %d", latest)

    train_step = jax.jit(
        make_train_step(make_loss_fn(config), optimizer, config.train.ema_decay, config.seed),
        in_shardings=(replicated(mesh), replicated(mesh), split_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )
    first_step = int(state.step)
    pending = None  # terms of the step before, read while the device works on the next one
    since, images = time.perf_counter(), 0
    with (
        checkpoints,  # an error waits for the checkpoint that is being written
        closing(
            train_batches(
                config.data,
                config.degradation,
                config.seed,
                first_step,
                jax.process_index(),
                jax.process_count(),
            )
        ) as batches,
        closing(Writer(workdir, enabled=is_main)) as writer,
        tqdm(
            total=config.train.steps, initial=first_step, unit="step", disable=not is_main
        ) as progress,
    ):
        for step in range(first_step + 1, config.train.steps + 1):
            batch = next(batches)
            index = batch.pop("index")
            batch = to_global(batch, mesh)
            with jax.transfer_guard("disallow"):  # nothing else goes to the devices unnoticed
                state, terms = train_step(state, frozen, batch)
            check_finite(pending, checkpoints)
            pending = (step, index, terms)
            images += config.data.batch_size
            progress.update()

            last = step == config.train.steps
            if last or step % config.train.log_every == 0:
                values = check_finite(pending, checkpoints)
                rate = images / (time.perf_counter() - since)
                since, images = time.perf_counter(), 0
                progress.set_postfix({"loss": f"{values['loss']:.4f}", "images/s": f"{rate:.1f}"})
                extra = {"learning_rate": float(learning_rate(step - 1)), "images_per_second": rate}
                writer.scalars(step, "train", values | extra)
            if last or step % config.train.checkpoint_every == 0:
                check_finite(pending, checkpoints)
                if is_main:  # before the checkpoint: a run that has its last one has its model
                    params = model_params(config, state.ema_params, frozen)
                    save_model(workdir / "model", model_config(config), params, overwrite=True)
                checkpoints.save(step, args=ocp.args.StandardSave(state))
            if last or step % config.train.eval_every == 0:
                check_finite(pending, checkpoints)
                report = evaluator(model_params(config, state.ema_params, frozen))
                writer.scalars(step, "eval", report.means)
                writer.picture(step, "eval", report.picture)
                if is_main:
                    progress.write(f"step {step}: {json.dumps(report.means)}")
                since, images = time.perf_counter(), 0
    if is_main:
        logger.info("model folder: %s", workdir / "model")


def model_config(config: ConfigDict) -> ConfigDict:
    """Keep what rebuilds and runs the model; data, paths and training stay in the workdir."""
    keys = ("network", "dtype", "model", "estimator", "diffusion", "prior", "sampler")
    return ConfigDict({key: config[key] for key in keys})


def model_params(config: ConfigDict, ema_params: Any, frozen: Any) -> dict[str, Any]:
    """Join the averaged weights and the frozen estimator into one model's params."""
    if config.network == "estimator":
        return {"estimator": ema_params}
    return {"denoiser": ema_params, "estimator": frozen["estimator"]}


def check_finite(pending: tuple | None, checkpoints: ocp.CheckpointManager) -> dict[str, float]:
    """Read a step's terms; raise FloatingPointError, with all that helps, if one is not finite."""
    if pending is None:
        return {}
    step, index, terms = pending
    values = {name: float(value) for name, value in jax.device_get(terms).items()}
    if not all(np.isfinite(list(values.values()))):
        latest = checkpoints.latest_step()
        good = "there is no checkpoint yet"
        if latest is not None:
            good = f"the last good checkpoint is that of step {latest}"
        raise FloatingPointError(f"step {step} gave {values} on examples {index.tolist()}; {good}")
    return values
