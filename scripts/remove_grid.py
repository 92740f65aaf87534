"""Take the grid out of a model: what its estimator's last layer draws on plain colours and slopes.

    python scripts/remove_grid.py MODEL OUT

That layer makes 16 pixels of each one, by 16 kernels a channel that learn apart. Where a picture
is plain or rises evenly, they should differ as the pixels of bicubic upsampling do; what is over
repeats every four pixels and is seen on skies and fur. OUT is MODEL with that taken off: kernels
are changed by least squares over such pictures, each tap of a kernel alike, and by as little as
does it (ridge regression). Less ridge takes off more, and more of what LPIPS takes for detail.
"""

from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import typer

from upsr_jax.models.build import create_estimator
from upsr_jax.models.config import ModelConfig
from upsr_jax.ops import bicubic_upsample
from upsr_jax.weights.model_folder import load_model, save_model

SIDE = 24  # pixels of a picture, of whose centre 2x2 are looked at
SLOPES = 2400  # pictures
RIDGE = 3e-3  # of the mean square of a feature


def main(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
) -> None:
    """Write OUT and print the grid before and after, on plain colours and on slopes."""
    config, params = load_model(model, dtype=None)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32), params["estimator"])
    images = np.concatenate([plain_images(), slope_images(np.random.default_rng(0))])
    features, grid = look(config, wide, images)
    change = least_change(features, grid)
    after = grid + (features @ change).reshape(grid.shape)
    is_plain = np.arange(len(grid)) < 4 * len(plain_images())
    for name, rows in (("plain colours", is_plain), ("slopes", ~is_plain)):
        strong = [np.sqrt(np.mean(one[rows] ** 2, axis=2)).max(axis=1) for one in (grid, after)]
        shown = (f"median {np.median(x):.2f}, 99% {np.quantile(x, 0.99):.2f}" for x in strong)
        print(f"{name}, of 255: {' -> '.join(shown)}")
    per_unit = 2 / 255  # the layer's output is doubled unit range
    layer = params["estimator"]["upsample"]
    layer["kernel"] = (layer["kernel"] + per_unit / 9 * change[:-1]).astype(layer["kernel"].dtype)
    layer["bias"] = (layer["bias"] + per_unit * change[-1]).astype(layer["bias"].dtype)
    save_model(out, config, params)


def plain_images() -> np.ndarray:
    """Return unit images of one colour each, [729, s, s, 3]: nine levels of each channel."""
    levels = np.linspace(0, 1, 9, dtype=np.float32)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 1, 3)
    return np.broadcast_to(colours, (len(colours), SIDE, SIDE, 3))


def slope_images(rng: np.random.Generator) -> np.ndarray:
    """Draw unit images that rise evenly or bend a little, [n, s, s, 3]; most are near grey."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    colours = rng.uniform(0.02, 0.98, (SLOPES, 1, 1, 3))
    near_grey = colours[..., :1] + rng.normal(0, 0.08, colours.shape)
    colours = np.where(rng.random((SLOPES, 1, 1, 1)) < 0.6, near_grey, colours)
    angle, steepness = rng.uniform(0, 2 * np.pi, SLOPES), rng.uniform(0, 0.02, SLOPES)
    across, down, bend, bend_down = (
        x[:, None, None]
        for x in (
            steepness * np.cos(angle),
            steepness * np.sin(angle),
            *rng.normal(0, 4e-4, (2, SLOPES)),
        )
    )
    rise = across * columns + down * rows + bend * columns**2 + bend_down * rows**2
    images = colours + rng.normal(1, 0.4, colours.shape) * rise[..., None]
    return np.clip(images, 0, 1).astype(np.float32)


def look(config: ModelConfig, params: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what the estimator's last layer sees at the images' centres, and the grid it draws.

    Features [n, c + 1], means of 3x3 pixels with a one behind, and grids [n, 3, 16] in 255ths:
    how the 16 pixels of each differ from the bicubic's, but for their common shift.
    """
    network = create_estimator(config)
    before_last = ("conv_first", "conv_after_body")
    first = SIDE // 2 - 1

    @jax.jit
    def run(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        estimate, states = network.apply(
            {"params": params},
            images,
            capture_intermediates=lambda layer, _: layer.name in before_last,
        )
        inner: Any = states["intermediates"]
        one, other = (inner[name]["__call__"][0] for name in before_last)
        means = nn.avg_pool(one + other, (3, 3))  # without padding: pixel i is around i + 1
        off = jnp.asarray(estimate) - (bicubic_upsample(2 * images - 1) + 1) / 2
        corner = slice(4 * first, 4 * first + 8)
        return means[:, first - 1 : first + 1, first - 1 : first + 1], off[:, corner, corner]

    parts = [run(jnp.asarray(images[i : i + 100])) for i in range(0, len(images), 100)]
    features, off = (
        np.concatenate(arrays).astype(np.float64) for arrays in zip(*parts, strict=True)
    )
    features = features.reshape(-1, features.shape[-1])
    grid = off.reshape(-1, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 16)
    grid -= grid.mean(axis=2, keepdims=True)
    return np.concatenate([features, np.ones((len(features), 1))], 1), 255 * grid


def least_change(features: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Solve for the change of weights and biases [c + 1, 48] that takes grids off, by ridge."""
    square = features.T @ features / len(features)
    ridge = np.full(len(square), RIDGE * np.trace(square) / len(square))
    ridge[-1] = 0  # biases may change as they like
    target = -features.T @ grid.reshape(len(grid), -1) / len(features)
    return np.linalg.solve(square + np.diag(ridge), target)


if __name__ == "__main__":
    typer.run(main)
