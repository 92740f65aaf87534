"""The estimator of the built-in model."""

from ml_collections import ConfigDict

from configs import lite_x4


def get_config() -> ConfigDict:
    config = lite_x4.get_config()
    config.network = "estimator"
    config.data.update(batch_size=32, crop_size=96)
    config.loss.lpips_weight = 0.0
    config.schedule.update(
        learning_rate=1.5e-3, warmup_steps=100, decay_steps=2400, final_learning_rate=1e-5
    )
    config.train.update(steps=2400, eval_every=400, checkpoint_every=400)
    return config
