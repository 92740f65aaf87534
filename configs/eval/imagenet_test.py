"""ImageNet-Test: 3,000 pairs of 256 and 64 pixels (arXiv 2503.18512, section 5).

    python scripts/prepare_imagenet_test.py ILSVRC2012_img_val.tar --out data/imagenet_test
    python -m upsr_jax.main --config configs/eval/imagenet_test.py --mode evaluate \
        --workdir runs/upsr --config.eval.model=weights/upsr

Cost: five calls of the denoiser are 634 GFLOP an image, 1.9 PFLOP in all, beside the estimator and
the metrics. All devices of all processes share the images, each with a whole copy of the networks,
whatever config.mesh says. Without --config.eval.model the last checkpoint in the workdir is
evaluated. The results go to the folder `evaluation` in it, or to --out.
"""

from ml_collections import ConfigDict

from configs import realsr_x4


def get_config() -> ConfigDict:
    """Return `realsr_x4` with everything that the published numbers depend on."""
    config = realsr_x4.get_config()
    config.dtype = "float32"
    config.eval.update(
        gt="data/imagenet_test/gt",
        lr="data/imagenet_test/lq",
        source="scripts/prepare_imagenet_test.py makes the pairs from ILSVRC2012_img_val.tar "
        "(https://image-net.org/download), with data/imagenet_test as its output",
        max_images=3000,
        metrics=("psnr_y", "ssim_y", "lpips_vgg", "lpips_alex", "niqe"),
        # The released protocol, so that its numbers compare.
        tile=512,
        overlap=64,
        blend="mean",
        noise_by_name=True,
    )
    return config
