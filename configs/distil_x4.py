"""Distil a trained denoiser of several steps into one of one step: see docs/distillation.md.

    python -m upsr_jax.main --config configs/distil_x4.py --workdir runs/distil_x4 \
        --config.pretrained.teacher=runs/realsr_x4/model

The losses are those of SinSR (arXiv 2311.14760), with LPIPS to the ground truth as in
residual-shifting distillation (arXiv 2503.13358). Cost: a step takes about five times the
denoiser's arithmetic of a step of `realsr_x4`, 5 calls of the teacher and 4 of the student, of
which 3 have a backward pass, but there are a seventh as many. Steps and rates are ours.
"""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    """Return `realsr_x4` with a student of one step, which begins as its teacher."""
    config = realsr_x4.get_config()
    config.sampler.method = "one_step"
    # Estimator and first weights are this folder's, too, unless others are named.
    config.pretrained.teacher = "runs/realsr_x4/model"
    config.loss.consistency_weight = 1.0  # SinSR weighs all its terms alike
    config.schedule.update(
        learning_rate=5e-5, warmup_steps=500, decay_steps=30_000, final_learning_rate=1e-6
    )
    config.train.update(steps=30_000, checkpoint_every=1000, eval_every=1000)
    return config
