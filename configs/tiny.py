"""The smallest networks that have every part, for tests: a step takes seconds on a CPU."""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    """Return `realsr_x4` with small networks."""
    config = realsr_x4.get_config()
    config.dtype = "float32"
    config.model.update(
        width=32,
        multipliers=(1, 2),
        num_res_blocks=(1, 2),
        swin_embed_dim=32,
        swin_head_dim=16,
        head_width=16,
    )
    config.estimator.update(
        embed_dim=24,
        depths=(2, 2),
        num_heads=2,
        window_size=8,
        category_size=32,
        num_tokens=16,
        reduced_dim=4,
        convffn_kernel_size=5,
    )
    return config
