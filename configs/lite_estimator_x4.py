"""The estimator of the built-in model: 0.1 M parameters, L1 loss.

    python -m upsr_jax.main --config configs/lite_estimator_x4.py --workdir runs/lite_estimator

See `lite_x4.py`. It takes about half an hour on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import lite_x4


def get_config() -> ConfigDict:
    """Return `lite_x4` with the estimator as the network that is trained."""
    config = lite_x4.get_config()
    config.network = "estimator"
    config.data.update(batch_size=32, crop_size=96)
    config.pretrained.estimator = ""
    config.loss.lpips_weight = 0.0
    config.schedule.update(learning_rate=1.5e-3, decay_steps=2400)
    config.optimizer.update(b2=0.999, muon=False)
    config.train.steps = 2400
    return config
