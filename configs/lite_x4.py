"""Small networks that run on a CPU: the built-in model."""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    config = realsr_x4.get_config()
    config.dtype = "float32"
    config.model.update(
        width=64,
        multipliers=(1, 1),
        num_res_blocks=(1, 1),
        swin_embed_dim=64,
        swin_head_dim=32,
        mlp_ratio=2,
        head_width=16,
        nominal_size=64,
        shift_mask="swin",
        residual=True,
    )
    config.estimator.update(
        embed_dim=32,
        depths=(3, 3),
        num_heads=2,
        window_size=8,
        category_size=32,
        num_tokens=16,
        reduced_dim=4,
        convffn_kernel_size=3,
    )
    first = config.degradation.first
    first.blur.sigma = (0.2, 2.0)
    first.resize.factor = (0.3, 1.5)
    first.noise.update(sigma=(1, 20), poisson_scale=(0.05, 1.0))
    first.jpeg_quality = (50, 95)
    config.degradation.second = None
    config.degradation.final.sinc.prob = 0.4
    config.degradation.final.jpeg_quality = (60, 100)
    config.data.update(folders=("data/photos",), batch_size=16, crop_size=128, num_threads=2)
    config.schedule.update(
        learning_rate=5e-4, warmup_steps=200, decay_steps=6000, final_learning_rate=1e-5
    )
    config.optimizer.clip_norm = 1.0
    config.train.update(
        steps=6000, log_every=50, checkpoint_every=500, keep_checkpoints=3, eval_every=500
    )
    config.eval.update(gt="data/pairs/gt", lr="data/pairs/lq")
    return config
