"""One update of training: the loss of the network that is trained, its gradient, the new state."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from upsr_jax.diffusion import Schedule
from upsr_jax.losses import (
    Distances,
    diffusion_loss,
    distillation_loss,
    draw_moves,
    estimator_loss,
    move,
)
from upsr_jax.metrics import ssim_loss
from upsr_jax.models.build import apply, create_denoiser, create_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.models.lpips import LPIPS
from upsr_jax.prior import Prior, make_prior
from upsr_jax.sampler import sample
from upsr_jax.train.sharding import replicated, split_state
from upsr_jax.train.state import TrainState, apply_gradients

LossFn = Callable[[Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, dict]]


def make_loss_fn(config: ConfigDict, remat: str) -> LossFn:
    """Build `(params, frozen, batch, keys) -> (loss, terms)` of the network that is trained.

    `frozen` holds the weights that don't learn: "lpips", "estimator" beside the denoiser, and
    "teacher", a denoiser whose way through all steps the one that learns is to take in one.
    `keys` [b] are random keys, one for each image. The terms are means over the batch, as
    `Meter.add` takes them. `remat` tells what the backward pass computes again (`SwinUNet`).
    """
    learns = config.network == "estimator"
    model = ModelConfig.of(config)
    estimator = create_estimator(model, remat if learns else "none")
    lpips = LPIPS(dtype=config.loss.lpips_dtype, remat=remat)

    def distances_of(frozen: Any, keys: jax.Array) -> Distances:
        def lpips_fn(image: jax.Array, reference: jax.Array) -> jax.Array:
            if config.loss.released_lpips_range:  # the released training fed it 2x - 1 of signed x
                image, reference = 2 * image - 1, 2 * reference - 1
            if config.loss.lpips_jitter:
                moves = draw_moves(keys)
                image, reference = move(image, moves), move(reference, moves)
            return apply(lpips, frozen["lpips"], image, reference)

        def ssim_fn(image: jax.Array, reference: jax.Array) -> jax.Array:
            return ssim_loss((image + 1) / 2, (reference + 1) / 2)

        return {
            "lpips": (config.loss.lpips_weight, lpips_fn),
            "ssim_loss": (config.loss.ssim_weight, ssim_fn),
        }

    if learns:

        def loss_of_estimator(params, frozen, batch, keys):
            loss, terms = estimator_loss(
                lambda image: apply(estimator, params, image),
                distances_of(frozen, keys),
                batch["lr"],
                batch["hr"],
            )
            return loss, {"loss": loss} | jax.tree.map(jnp.mean, terms)

        return loss_of_estimator

    denoiser = create_denoiser(model, remat)
    schedule = Schedule.create(**config.diffusion)
    steps = config.diffusion.steps
    # A one-step model is never asked for another step than the last.
    first_step = steps - 1 if config.sampler.method == "one_step" else 0

    def prior_of(frozen: Any, lr: jax.Array) -> Prior:
        estimate_fn = partial(apply, estimator, frozen.get("estimator"))
        return make_prior(estimate_fn, lr, **config.prior)

    def draw_noise(keys: jax.Array, hr: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, hr.shape[1:]))(keys)

    def loss_of_student(params, frozen, batch, keys):
        prior, hr = prior_of(frozen, batch["lr"]), batch["hr"]
        _, key_noise = jax.vmap(jax.random.split, out_axes=1)(keys)  # LPIPS draws from `keys`
        noise = draw_noise(key_noise, hr)
        teacher_fn = partial(apply, denoiser, frozen["teacher"])
        loss, terms = distillation_loss(
            schedule,
            partial(apply, denoiser, params),
            distances_of(frozen, keys),
            prior,
            hr,
            target=sample(schedule, teacher_fn, prior, noise),
            noise=noise,
            consistency_weight=config.loss.consistency_weight,
        )
        return loss, {"loss": loss} | jax.tree.map(jnp.mean, terms)

    if config.pretrained.teacher:
        return loss_of_student

    def loss_of_denoiser(params, frozen, batch, keys):
        prior, hr = prior_of(frozen, batch["lr"]), batch["hr"]
        key_t, key_noise = jax.vmap(jax.random.split, out_axes=1)(keys)
        t = jax.vmap(lambda key: jax.random.randint(key, (), first_step, steps))(key_t)
        loss, terms = diffusion_loss(
            schedule,
            partial(apply, denoiser, params),
            distances_of(frozen, keys),
            prior,
            hr,
            noise=draw_noise(key_noise, hr),
            t=t,
        )
        has_t = jax.nn.one_hot(t, steps)
        by_t = {
            f"{name}_by_t": jnp.mean(values[:, None] * has_t, 0) for name, values in terms.items()
        }
        by_t["share_by_t"] = jnp.mean(has_t, 0)
        return loss, {"loss": loss} | jax.tree.map(jnp.mean, terms) | by_t

    return loss_of_denoiser


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    seed: int,
    microbatches: int,
    mesh: Mesh,
) -> Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, dict]]:
    """Build one update `(state, frozen, batch) -> (state, terms)`.

    The gradient is the mean over `microbatches` parts of the batch, computed one after the other.
    Everything random is drawn from (seed, step, place in the batch), so that neither these nor the
    devices change what an image gets. `stop` [b] in the batch becomes the term "stop": true
    everywhere if true anywhere. "skipped" tells that a term or the gradient was not finite: nothing
    but the step has changed then.
    """

    def train_step(state, frozen, batch):
        batch = dict(batch)
        stop = jnp.any(batch.pop("stop"))
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        rows = jnp.arange(len(batch["hr"]))
        keys = jax.vmap(partial(jax.random.fold_in, step_key))(rows)
        constrain = jax.lax.with_sharding_constraint
        shardings = split_state(state.params, mesh)

        def grads_and_terms(part, part_keys):
            def gathered_loss(params):
                return loss_fn(constrain(params, replicated(mesh)), frozen, part, part_keys)

            grads, terms = jax.grad(gathered_loss, has_aux=True)(state.params)
            return constrain(grads, shardings), terms

        if microbatches == 1:
            grads, terms = grads_and_terms(batch, keys)
        else:
            parts = jax.tree.map(partial(split_microbatches, parts=microbatches), (batch, keys))
            shapes = jax.eval_shape(grads_and_terms, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def add_part(total, part):
                return jax.tree.map(jnp.add, total, grads_and_terms(*part)), None

            total, _ = jax.lax.scan(add_part, zeros, parts)
            grads, terms = jax.tree.map(lambda x: x / microbatches, total)

        terms["grad_norm"] = optax.tree.norm(grads)
        # Known before the update, it costs no second copy of the state.
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(terms)]).all()
        updated = apply_gradients(state, grads, optimizer, ema_decay)
        state = jax.tree.map(partial(jnp.where, finite), updated, state)
        state = state.replace(step=updated.step)
        # The new parameters' norm, too: no step that spoils them goes into a checkpoint.
        norm = optax.tree.norm(state.params)
        return state, terms | {"param_norm": norm, "skipped": ~finite, "stop": stop}

    return train_step


def split_microbatches(x: jax.Array, parts: int) -> jax.Array:
    """Split rows [b, ...] into [parts, b/parts, ...]; each device keeps the rows that it has."""
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
