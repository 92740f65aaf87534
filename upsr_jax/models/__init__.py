"""The networks: denoiser (Swin-UNet), estimator (ATD) and perceptual distance (LPIPS)."""
