"""An estimator for UPSR: ATD, 2.5 M parameters, L1 loss, frozen afterwards.

    python -m upsr_jax.main --config configs/estimator_x4.py --workdir runs/estimator_x4

The network is that of the released weights. How they were trained was never released, beyond the
loss and the degradation: rate, schedule, batch and steps are ours, and nobody has tried them.

It sees the same degradations as the denoiser. Set config.loss.lpips_weight for sharper estimates.
Its model folder, `runs/estimator_x4/model`, goes into config.pretrained.estimator of the denoiser.
"""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    """Return `realsr_x4` with the estimator as the network that is trained."""
    config = realsr_x4.get_config()
    config.network = "estimator"
    config.loss.lpips_weight = 0.0
    config.schedule.learning_rate = 2e-4
    return config
