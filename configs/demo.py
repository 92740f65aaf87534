"""Train and evaluate tiny networks on the packaged photographs, to see every part work.

    python -m upsr_jax.main --config demo --workdir runs/demo

It takes under 3 minutes on two CPU cores, most of it compilation, and shows the way, not quality:
the denoiser starts from the built-in estimator and learns for a few steps only.
"""

from pathlib import Path

from ml_collections import ConfigDict

import upsr_jax
from configs import lite_x4

ASSETS = Path(upsr_jax.__file__).parent / "assets"


def get_config() -> ConfigDict:
    """Return `lite_x4` with a tiny denoiser, on the packaged photographs."""
    config = lite_x4.get_config()
    config.model.update(width=32, swin_embed_dim=32, swin_depth=1, head_width=16)
    config.sampler.method = "ddim"
    config.data.update(folders=(str(ASSETS / "photos"),), batch_size=4, crop_size=64)
    config.pretrained.update(estimator=str(ASSETS / "lite_x4"), denoiser="")
    config.loss.lpips_weight = 0.0
    config.optimizer.muon = False
    config.schedule.update(learning_rate=5e-4, warmup_steps=5, decay_steps=40)
    config.train.update(steps=40, log_every=5, checkpoint_every=20, eval_every=20)
    config.eval.update(gt=str(ASSETS / "photos"), lr="", max_images=4)
    return config
