"""Image quality metrics: numbers in, numbers out."""

from upsr_jax.metrics.psnr_ssim import psnr_y, ssim_y

HIGHER_IS_BETTER = {
    "psnr_y": True,
    "ssim_y": True,
    "lpips_vgg": False,
    "lpips_alex": False,
    "niqe": False,
}
WITHOUT_REFERENCE = ("niqe",)  # these need no ground truth

__all__ = ["HIGHER_IS_BETTER", "WITHOUT_REFERENCE", "psnr_y", "ssim_y"]
