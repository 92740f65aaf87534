"""`released_x4`, whose checkpoints are looked at as the paper's tables are: on its three test sets.

    python -m upsr_jax.main --config validated_x4 --workdir runs/validated_x4 \
        --config.pretrained.estimator=runs/estimator_x4/model

What each set measures stands in `configs/eval`; how to choose by that in
`docs/choose_a_checkpoint.md`. Where pyiqa is installed, CLIP-IQA and MUSIQ of every fourth
evaluation: --config.eval.pyiqa='("clipiqa", "musiq")' --config.train.pyiqa_every=4

Cost of an evaluation: that of 300 of the 3,000 images of ImageNet-Test, see there, and of 165
photographs, some of which are cut in tiles.
"""

from ml_collections import ConfigDict

from configs import released_x4
from configs.eval import imagenet_test, realset65, realsr


def get_config() -> ConfigDict:
    """Return `released_x4` with three sets to validate on."""
    config = released_x4.get_config()
    keys = ("gt", "lr", "source", "max_images", "metrics")
    for name, module in (
        ("imagenet_test", imagenet_test),
        ("realsr", realsr),
        ("realset65", realset65),
    ):
        values = module.get_config().eval
        config.eval.sets[name] = {key: values[key] for key in keys}
    config.eval.sets.imagenet_test.max_images = 300
    config.train.keep_best = "imagenet_test/lpips_alex"
    return config
