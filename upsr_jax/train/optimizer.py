"""AdamW or Muon, and a learning rate with linear warm-up that is then constant or falls."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers


def create_schedule(
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    final_learning_rate: float,
    restarts: Sequence[int] = (),
    milestones: Sequence[int] = (),
    gamma: float = 0.5,
) -> optax.Schedule:
    """Rise linearly over `warmup_steps`, then fall to `final_learning_rate` at `decay_steps`.

    The fall is a cosine, which begins again at the full rate at each step of `restarts` (SGDR,
    arXiv 1608.03983). With `decay_steps` = 0 the rate stays constant instead, but is multiplied by
    `gamma` at each step of `milestones`. Raises ValueError for what contradicts itself.
    """
    _check_steps("restarts", restarts, warmup_steps, decay_steps)
    _check_steps("milestones", milestones, warmup_steps, 0)
    if milestones and decay_steps:
        raise ValueError(
            f"config.schedule has milestones {tuple(milestones)} and decay_steps {decay_steps}: "
            "set one of them, () or 0 is none"
        )
    if restarts and not decay_steps:
        raise ValueError(
            f"config.schedule has restarts {tuple(restarts)} and decay_steps 0: set decay_steps to "
            "where the last fall ends"
        )
    warmup = optax.linear_schedule(
        learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps
    )
    if milestones:
        falls = {step - warmup_steps: gamma for step in milestones}
        steps_down = optax.piecewise_constant_schedule(learning_rate, falls)
        return optax.join_schedules([warmup, steps_down], [warmup_steps])
    if not decay_steps:
        return warmup
    if decay_steps <= warmup_steps:
        raise ValueError(f"decay_steps {decay_steps} must be over warmup_steps {warmup_steps}")
    begins = [warmup_steps, *restarts]
    falls = [
        optax.cosine_decay_schedule(learning_rate, end - begin, final_learning_rate / learning_rate)
        for begin, end in pairwise([*begins, decay_steps])
    ]
    return optax.join_schedules([warmup, *falls], begins)


def _check_steps(name: str, steps: Sequence[int], after: int, before: int) -> None:
    """Raise ValueError unless steps grow from over `after` to under `before`, if not 0."""
    ends = [after, *steps, *([before] if before else [])]
    if steps and not all(low < high for low, high in pairwise(ends)):
        bound = f" and under decay_steps {before}" if before else ""
        raise ValueError(
            f"config.schedule.{name} is {tuple(steps)}: give growing numbers of steps over "
            f"warmup_steps {after}{bound}"
        )


def create_optimizer(
    schedule: optax.Schedule,
    b1: float,
    b2: float,
    weight_decay: float,
    clip_norm: float,
    muon: bool,
) -> optax.GradientTransformation:
    """Build AdamW (arXiv 1711.05101); `clip_norm`, unless 0, bounds the gradient's global norm.

    With `muon` the kernels inside the network take orthogonalized steps instead (Muon, Jordan
    2024), of a root mean square of 0.2 times the rate, which is about AdamW's (arXiv 2502.16982,
    Sec. 2.2), and with a momentum of 0.95; all else takes AdamW's with Nesterov momentum, at 0.3 of
    the rate. Every device orthogonalizes every kernel, whole: that is for small networks.
    """
    if muon:
        transform = optax.contrib.muon(
            schedule,
            weight_decay=weight_decay,
            # At the whole rate, the kernel that writes the image moved by 3% a step, the others
            # by 0.3%, and training diverged.
            adam_learning_rate=lambda count: 0.3 * schedule(count),
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=inner_kernels,
        )
    else:
        transform = optax.adamw(schedule, b1, b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), transform) if clip_norm else transform


def inner_kernels(params: Any) -> Any:
    """Tell for each parameter that Muon steps which axes are its inputs and outputs; else None.

    The layers that read and write images are left out, as its author advises.
    """
    outer = ("stem", "head_out", "conv_first", "upsample")  # of the denoiser, of the estimator

    def axes(path: tuple, leaf: Any) -> MuonDimensionNumbers | None:
        layer, name = (entry.key for entry in path[-2:])
        depthwise = name == "kernel" and leaf.shape[-2] == 1
        if name != "kernel" or depthwise or layer in outer:
            return None
        return MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)
