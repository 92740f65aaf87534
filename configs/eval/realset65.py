"""RealSet65: 65 photographs without ground truth (arXiv 2307.12348).

    python -m upsr_jax.main --config configs/eval/realset65.py --mode evaluate \
        --workdir runs/upsr --config.eval.model=weights/upsr

Only metrics without reference apply.
"""

from ml_collections import ConfigDict

from configs.eval import realsr


def get_config() -> ConfigDict:
    """Return `realsr` on the images of RealSet65."""
    config = realsr.get_config()
    config.eval.update(
        gt="",
        lr="data/realset65",
        source="copy the images of testdata/RealSet65 of https://github.com/zsyOAOA/ResShift to "
        "data/realset65",
        max_images=65,
        metrics=("niqe",),
    )
    return config
