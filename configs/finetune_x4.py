"""Fine-tune the built-in model on a few hundred pairs of one's own: see docs/finetuning.md.

    python -m upsr_jax.main --config finetune_x4 --workdir runs/own

with pairs in `data/own/gt` and `data/own/lq`, and others to measure on in `data/own_test`.
"""

from pathlib import Path

from ml_collections import ConfigDict

import upsr_jax
from configs import lite_x4

MODEL = str(Path(upsr_jax.__file__).parent / "assets" / "lite_x4")


def get_config() -> ConfigDict:
    """Return `lite_x4` that goes on from the built-in model, on pairs, at a low rate."""
    config = lite_x4.get_config()
    config.pretrained.update(estimator=MODEL, denoiser=MODEL)
    config.data.update(
        folders=(), pairs=("data/own/gt", "data/own/lq"), scale=(1.0, 1.0), batch_size=8
    )
    config.data.crop_size = 128
    # Little is seen often: what is not needed shrinks, and the rate is a quarter of training's.
    config.optimizer.weight_decay = 0.1
    config.schedule.update(learning_rate=2e-4, decay_steps=1000)
    config.train.update(steps=1000, eval_every=100)
    config.eval.update(gt="data/own_test/gt", lr="data/own_test/lq")
    return config
