"""LPIPS: a perceptual distance on features of VGG-16 or AlexNet (arXiv 1801.03924)."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from upsr_jax.models.remat import rematerialize
from upsr_jax.ops import Sizes, blank_outside, mean_inside, window_count

MEANS = (-0.030, -0.088, -0.188)
SPREADS = (0.458, 0.448, 0.450)


class Conv(NamedTuple):
    """A convolution, followed by a ReLU."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Stage(NamedTuple):
    """Max pooling over `pool` pixels in steps of 2, unless it is 0; convolutions; features."""

    convs: tuple[Conv, ...]
    pool: int = 0


Backbone = tuple[Stage, ...]

VGG16: Backbone = (  # arXiv 1409.1556, table 1, column D
    Stage((Conv(64),) * 2),
    Stage((Conv(128),) * 2, pool=2),
    Stage((Conv(256),) * 3, pool=2),
    Stage((Conv(512),) * 3, pool=2),
    Stage((Conv(512),) * 3, pool=2),
)
ALEXNET: Backbone = (  # arXiv 1404.5997, footnote 1
    Stage((Conv(64, kernel=11, stride=4, padding=2),)),
    Stage((Conv(192, kernel=5, padding=2),), pool=3),
    Stage((Conv(384),), pool=3),
    Stage((Conv(256),)),
    Stage((Conv(256),)),
)


def conv_names(backbone: Backbone) -> list[list[str]]:
    """Name each stage's convolutions: conv1_1, conv1_2; conv2_1 and so on."""
    return [
        [f"conv{number}_{i}" for i in range(1, len(stage.convs) + 1)]
        for number, stage in enumerate(backbone, 1)
    ]


def min_side(backbone: Backbone) -> int:
    """Return the smallest side of an image that leaves a pixel of features at the last stage."""
    side = 1
    for stage in reversed(backbone):
        for conv in reversed(stage.convs):
            side = (side - 1) * conv.stride + conv.kernel - 2 * conv.padding
        if stage.pool:
            side = (side - 1) * 2 + stage.pool
    return side


class LPIPS(nn.Module):
    """Measure the perceptual distance of two batches of signed images (arXiv 1801.03924, eq. 1).

    `dtype` is that of the convolutions; features are compared in at least float32. With `remat`
    other than "none", a gradient computes all but the convolutions again, see `models.remat`.
    """

    backbone: Backbone = VGG16
    dtype: Any = None
    remat: str = "none"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        reference: Float[Array, "b h w 3"],
        sizes: Sizes | None = None,
    ) -> Float[Array, "b"]:
        """Return one distance per pair, 0 for equal images.

        Sides must be at least `min_side` of the backbone: 16 for VGG-16, 31 for AlexNet. For
        `sizes` see `metrics.canvas`; an image on the canvas that is smaller than that gives NaN.
        """
        if image.shape != reference.shape:
            raise ValueError(
                f"LPIPS compares images of one shape, not {image.shape} and {reference.shape}"
            )
        if min(image.shape[1:3]) < (limit := min_side(self.backbone)):
            raise ValueError(
                f"LPIPS needs sides of at least {limit} pixels, not {image.shape[1:3]}"
            )
        # All at once, "full" would compute as much again and need as much memory as "none".
        remat = "selective" if self.remat == "full" else self.remat
        return rematerialize(LPIPS.distance, remat)(self, image, reference, sizes)

    def distance(
        self,
        image: Float[Array, "b h w 3"],
        reference: Float[Array, "b h w 3"],
        sizes: Sizes | None,
    ) -> Float[Array, "b"]:
        """Compare features of images that have been checked."""
        accumulate = jnp.promote_types(image.dtype, jnp.float32)
        shift, scale = (jnp.asarray([[[x]]], accumulate) for x in (MEANS, SPREADS))
        convs = [
            [
                nn.Conv(
                    conv.width,
                    (conv.kernel, conv.kernel),
                    conv.stride,
                    conv.padding,
                    dtype=self.dtype,
                    name=name,
                )
                for conv, name in zip(stage.convs, names, strict=True)
            ]
            for stage, names in zip(self.backbone, conv_names(self.backbone), strict=True)
        ]
        widths = [stage.convs[-1].width for stage in self.backbone]
        heads = [
            self.param(f"head_{number}", nn.initializers.uniform(2 / width), (width,))
            for number, width in enumerate(widths, 1)
        ]

        def features(x: Float[Array, "b h w 3"]) -> list[tuple[Array, Sizes | None]]:
            u, inner, outputs = (x - shift) / scale, sizes, []
            for stage, layers in zip(self.backbone, convs, strict=True):
                if stage.pool:
                    u = nn.max_pool(u, (stage.pool, stage.pool), (2, 2))
                    inner = window_count(inner, stage.pool, stride=2, padding=0)
                for conv, layer in zip(stage.convs, layers, strict=True):
                    u = nn.relu(layer(blank_outside(u, inner)))
                    inner = window_count(inner, conv.kernel, conv.stride, conv.padding)
                outputs.append((_normalize(u.astype(accumulate)), inner))
            return outputs

        # Two passes rather than one over both batches: the reference needs no backward pass.
        pairs = zip(features(image), features(reference), heads, strict=True)
        stages = [mean_inside((a - b) ** 2 @ head, inner) for (a, inner), (b, _), head in pairs]
        return jnp.sum(jnp.stack(stages), axis=0)


def _normalize(u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Divide every pixel's features by their norm, with a finite gradient where all are zero."""
    square = jnp.sum(u**2, axis=-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return u / (norm + 1e-10)
