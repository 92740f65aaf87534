"""Options that several commands of `upsr` have, and their choices."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class OutputFormat(StrEnum):
    """File formats that results can be written in."""

    png = "png"
    jpg = "jpg"
    webp = "webp"


class Method(StrEnum):
    """Ways to sample, `sampler.METHODS`."""

    ddim = "ddim"
    ancestral = "ancestral"
    one_step = "one_step"


ModelFolder = Annotated[
    Path | None, typer.Option(help="Model folder.", show_default="the built-in one")
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Same seed, same bytes.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of sampling.", show_default="as the model was trained"),
]
Sampler = Annotated[
    Method | None, typer.Option(help="How to sample.", show_default="as the model was trained")
]
MinNoise = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Noise where the model is sure of its estimate; less of it invents less.",
        show_default="as the model was trained",
    ),
]
Tile = Annotated[int, typer.Option(help="Pixels a side run at once; less takes less memory.")]
Fidelity = Annotated[
    float,
    typer.Option(min=0, max=1, help="Blend with the estimate: 0 is sharpest, 1 most faithful."),
]
