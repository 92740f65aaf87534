"""Two settings of the Real-ESRGAN degradation (arXiv 2107.10833), as ResShift and UPSR use it."""

from ml_collections import ConfigDict


def real_esrgan() -> ConfigDict:
    """Return the setting of training: two orders of blur, resize, noise and JPEG."""
    bells = dict(
        # Gaussian, generalized Gaussian, plateau: isotropic and anisotropic of each
        bell_probs=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        beta_generalized=(0.5, 4.0),
        beta_plateau=(1.0, 2.0),
    )
    return ConfigDict(
        dict(
            first=dict(
                blur=dict(prob=1.0, sizes=(3, 19), sinc_prob=0.1, sigma=(0.2, 3.0), **bells),
                resize=dict(up_prob=0.2, down_prob=0.7, factor=(0.15, 1.5)),
                noise=dict(
                    gaussian_prob=0.5, sigma=(1.0, 30.0), poisson_scale=(0.05, 3.0), gray_prob=0.4
                ),
                jpeg_quality=(30, 95),
            ),
            second=dict(
                blur=dict(prob=0.8, sizes=(3, 13), sinc_prob=0.1, sigma=(0.2, 1.5), **bells),
                resize=dict(up_prob=0.3, down_prob=0.4, factor=(0.3, 1.2)),
                noise=dict(
                    gaussian_prob=0.5, sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5), gray_prob=0.4
                ),
            ),
            final=dict(sinc=dict(prob=0.8, sizes=(3, 13)), jpeg_quality=(30, 95)),
            simulated_jpeg=False,  # True: not libjpeg's, but what computes the same loss
        )
    )


def imagenet_test() -> ConfigDict:
    """Return the milder setting, of one order, behind the pairs of ImageNet-Test."""
    return ConfigDict(
        dict(
            first=dict(
                blur=dict(
                    prob=1.0,
                    sizes=(3, 11),
                    sinc_prob=0.1,
                    bell_probs=(0.6, 0.4, 0.0, 0.0, 0.0, 0.0),
                    sigma=(0.2, 0.8),
                    beta_generalized=(0.5, 4.0),
                    beta_plateau=(1.0, 2.0),
                ),
                resize=dict(up_prob=0.2, down_prob=0.7, factor=(0.5, 1.5)),
                noise=dict(
                    gaussian_prob=0.5, sigma=(1.0, 15.0), poisson_scale=(0.05, 0.3), gray_prob=0.4
                ),
                jpeg_quality=(70, 95),
            ),
            second=None,
            final=dict(sinc=dict(prob=0.2, sizes=(3, 5)), jpeg_quality=(80, 100)),
            simulated_jpeg=False,
        )
    )
