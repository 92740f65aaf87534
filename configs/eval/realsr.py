"""RealSR V3, its 100 test pairs of two cameras (arXiv 1904.00523).

    python -m upsr_jax.main --config configs/eval/realsr.py --mode evaluate \
        --workdir runs/upsr --config.eval.model=weights/upsr

Sides differ, and large ones are tiled: a GPU is advisable.
"""

from ml_collections import ConfigDict

from configs.eval import imagenet_test


def get_config() -> ConfigDict:
    """Return `imagenet_test` on the pairs of RealSR."""
    config = imagenet_test.get_config()
    config.eval.update(
        gt="data/realsr/gt",
        lr="data/realsr/lq",
        source="get version 3 from https://github.com/csjcai/RealSR and copy, of Canon/Test/4 and "
        "Nikon/Test/4, each NAME_HR.png as data/realsr/gt/NAME.png and each NAME_LR4.png as "
        "data/realsr/lq/NAME.png",
        max_images=100,
    )
    return config
