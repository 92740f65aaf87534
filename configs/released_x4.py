"""The released training of UPSR x4 (arXiv 2503.18512), choice by choice, its oddities included.

    python -m upsr_jax.main --config released_x4 --workdir runs/released_x4 \
        --config.pretrained.estimator=runs/estimator_x4/model

For those who want the paper's numbers from scratch; `realsr_x4.py`, from which this starts, is what
to train otherwise. What can't be had here: the float16 of the rest of the networks, with a scaled
loss, which is bfloat16 here; the random numbers; and the estimator, see `estimator_x4.py`.
"""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    """Return `realsr_x4` with the choices of the released training."""
    config = realsr_x4.get_config()
    # LPIPS was fed images in [-1, 1] where it expected [0, 1], and so saw 2x - 1 of them.
    config.loss.released_lpips_range = True
    config.loss.lpips_dtype = "float16"
    # Resize factors, ways of resizing and branches were drawn once for a batch, and batches mixed.
    config.data.pool = 160
    config.degradation.simulated_jpeg = True
    # The warm-up ended one step short of its 5,000 and left the rate where it was.
    config.schedule.update(learning_rate=0.9998e-4, warmup_steps=4999)
    config.optimizer.clip_norm = 0.0  # no clipping
    return config
