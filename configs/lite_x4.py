"""The built-in model: small networks for CPUs, trained on photographs of one's own.

    python -m upsr_jax.main --config configs/lite_estimator_x4.py --workdir runs/lite_estimator
    python -m upsr_jax.main --config configs/lite_x4.py --workdir runs/lite

each with --config.data.folders=PHOTOS, --config.eval.gt=GT and --config.eval.lr=LR. Cost: half an
hour and three hours on two CPU cores, which leaves much to gain;
`upsr_jax/assets/lite_x4/model_card.md` says what the shipped weights saw and reach.
"""

from ml_collections import ConfigDict

from configs import realsr_x4
from configs.degradations import imagenet_test


def get_config() -> ConfigDict:
    """Return `realsr_x4` with small networks, milder degradations and short training."""
    config = realsr_x4.get_config()
    config.dtype = "float32"
    config.model.update(
        width=128,
        multipliers=(1, 1),
        num_res_blocks=(2, 1),
        swin_embed_dim=128,
        swin_head_dim=32,
        mlp_ratio=2,
        head_width=64,  # an output pixel needs 48 values; with 32 channels the head was too narrow
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
    # One step, and next to no noise: in five steps and with the paper's kappa of 2.5 so small a
    # network lets noise through (PSNR-Y 23.9 instead of 24.4), and even 0.1 costs LPIPS of 0.002.
    config.sampler.method = "one_step"
    config.diffusion.kappa = 0.02
    # With the paper's 0.99, x_T holds 2% of x_0 - y_bic in training and none in sampling. So little
    # noise doesn't hide that: the network learned to read the truth there, and missed it later.
    config.diffusion.end = 1.0
    config.degradation = imagenet_test()
    # Many small crops teach more in the same time than few large ones.
    config.data.update(
        folders=("data/photos",), batch_size=16, crop_size=64, scale=(0.7, 1.0), num_threads=1
    )
    config.pretrained.estimator = "runs/lite_estimator/model"
    config.loss.lpips_weight = 1.0
    config.schedule.update(
        learning_rate=8e-4, warmup_steps=20, decay_steps=5000, final_learning_rate=1e-5
    )
    config.optimizer.update(b2=0.99, clip_norm=1.0, muon=True)
    config.train.update(
        steps=5000,
        ema_decay=0.99,
        log_every=50,
        checkpoint_every=100,
        keep_every=0,
        eval_every=300,
    )
    return config
