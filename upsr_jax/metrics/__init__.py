"""Image quality metrics: numbers in, numbers out."""

from upsr_jax.metrics.psnr_ssim import psnr_y, ssim_loss, ssim_y

__all__ = ["psnr_y", "ssim_loss", "ssim_y"]
