"""Tables as markdown and HTML, and pages that need nothing but themselves."""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from upsr_jax.files.names import show
from upsr_jax.files.whole import write_whole

MISSING = "–"


class Cell(NamedTuple):
    """Text, something smaller beside it, "better" or "worse", and what a column is sorted by."""

    text: str
    detail: str = ""
    tone: str = ""
    value: float | None = None

    @property
    def key(self) -> str:
        """The value as JavaScript reads it; "" if it is missing."""
        return "" if self.value is None or math.isnan(self.value) else json.dumps(self.value)


class Table(NamedTuple):
    """Headings and rows; the first column names the row, the others hold numbers or texts."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    of_numbers: bool = True


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table that holds texts only."""
    return Table(headings, [[Cell(text) for text in row] for row in rows], of_numbers=False)


def format_number(value: float | None, digits: int, sign: str = "-") -> str:
    """Format a number with `digits` decimals, with its sign always if `sign` is "+"."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:{sign}.{digits}f}"


def markdown_text(text: str) -> str:
    """Escape a text so that markdown shows it as `show` does, and little else."""
    special = r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|\](?=[(\[])|&(?=[\w#])"
    return re.sub(special, r"\\\g<0>", show(text))


def markdown_table(table: Table) -> str:
    """Write a table as markdown."""
    rule = ["---", *(["---:" if table.of_numbers else "---"] * (len(table.headings) - 1))]
    rows = [[f"{cell.text} {cell.detail}".rstrip() for cell in row] for row in table.rows]
    escaped = [[markdown_text(text) for text in row] for row in [table.headings, *rows]]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])


def render(template: str, **values: Any) -> str:
    """Fill a template of the package with values, which become text as `show` has it."""
    return PAGES.get_template(template).render(values)


def source_hash(text: str) -> str:
    """Name a style or script as a content security policy does."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def data_uri(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> str:
    """Embed a picture as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    write_whole(path, text.encode())


PAGES = Environment(
    loader=PackageLoader("upsr_jax", "assets/report"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=lambda value: show(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters.update(data_uri=data_uri, source_hash=source_hash)
