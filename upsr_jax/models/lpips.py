"""LPIPS-VGG: a perceptual distance on features of VGG-16 (arXiv 1801.03924)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # convolutions and width of each
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Measure the perceptual distance of two batches of signed images (arXiv 1801.03924, eq. 1).

    `dtype` is that of the convolutions; features are compared in at least float32.
    """

    dtype: Any = None

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], reference: Float[Array, "b h w 3"]
    ) -> Float[Array, "b"]:
        """Return one distance per pair, 0 for equal images. Sides must be at least 16."""
        if image.shape != reference.shape:
            raise ValueError(
                f"LPIPS compares images of one shape, not {image.shape} and {reference.shape}"
            )
        if min(image.shape[1:3]) < 16:
            raise ValueError(f"LPIPS needs sides of at least 16 pixels, not {image.shape[1:3]}")
        accumulate = jnp.promote_types(image.dtype, jnp.float32)
        shift, scale = (jnp.asarray([[[x]]], accumulate) for x in (SHIFT, SCALE))
        convs = [
            [
                nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv{stage}_{i}")
                for i in range(1, depth + 1)
            ]
            for stage, (depth, width) in enumerate(STAGES, 1)
        ]
        heads = [
            self.param(f"head_{stage}", nn.initializers.uniform(2 / width), (width,))
            for stage, (_, width) in enumerate(STAGES, 1)
        ]

        def features(x: Float[Array, "b h w 3"]) -> list[Float[Array, "b h2 w2 c"]]:
            u, outputs = (x - shift) / scale, []
            for stage in convs:
                if outputs:
                    u = nn.max_pool(u, (2, 2), (2, 2))
                for layer in stage:
                    u = nn.relu(layer(u))
                outputs.append(_normalize(u.astype(accumulate)))
            return outputs

        # Two passes rather than one over both batches: the reference needs no backward pass.
        pairs = zip(features(image), features(reference), heads, strict=True)
        stages = [jnp.mean((a - b) ** 2 @ head, axis=(1, 2)) for a, b, head in pairs]
        return jnp.sum(jnp.stack(stages), axis=0)


def _normalize(u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Divide every pixel's features by their norm, with a finite gradient where all are zero."""
    square = jnp.sum(u**2, axis=-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return u / (norm + 1e-10)
