"""A small run for tests on several devices; flags give the folders of photographs and model."""

from ml_collections import ConfigDict
from tiny_model import smallest

SIZE = 64  # of a ground truth


def get_config() -> ConfigDict:
    """Return `tiny` at its least: one level, small crops, twenty steps of eight images."""
    config = smallest()
    config.sampler.update(method="one_step", steps=1)
    config.data.update(batch_size=8, crop_size=SIZE, num_threads=2)
    config.loss.lpips_weight = 0.0
    config.train.update(
        steps=20, ema_decay=0.9, log_every=1, checkpoint_every=10, keep_best="", eval_every=0
    )
    config.eval.update(lr="", crop_size=SIZE, max_images=1, pictures=1, metrics=("psnr_y",))
    return config
