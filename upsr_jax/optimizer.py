"""AdamW, and a learning rate with linear warm-up that is then constant or falls as a cosine."""

import optax


def create_schedule(
    learning_rate: float, warmup_steps: int, decay_steps: int, final_learning_rate: float
) -> optax.Schedule:
    """Rise linearly over `warmup_steps`, then fall to `final_learning_rate` at `decay_steps`.

    The fall is a cosine; with `decay_steps` = 0 the rate stays constant instead.
    """
    warmup = optax.linear_schedule(
        learning_rate / max(warmup_steps, 1), learning_rate, warmup_steps
    )
    if not decay_steps:
        return warmup
    if decay_steps <= warmup_steps:
        raise ValueError(f"decay_steps {decay_steps} must be over warmup_steps {warmup_steps}")
    decay = optax.cosine_decay_schedule(
        learning_rate, decay_steps - warmup_steps, final_learning_rate / learning_rate
    )
    return optax.join_schedules([warmup, decay], [warmup_steps])


def create_optimizer(
    schedule: optax.Schedule, b1: float, b2: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Build AdamW (arXiv 1711.05101); `clip_norm`, unless 0, bounds the gradient's global norm."""
    adamw = optax.adamw(schedule, b1, b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm else adamw
