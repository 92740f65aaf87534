"""Tables as markdown and HTML, and pages that need nothing but themselves."""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

TEMPLATES = Path(__file__).parents[2] / "assets" / "report"
MISSING = "–"


class Cell(NamedTuple):
    """Text, something smaller beside it, "better" or "worse", and what a column is sorted by."""

    text: str
    detail: str = ""
    tone: str = ""
    value: float | None = None


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
    """Escape a text so that markdown shows it as it is, in one line, and little else."""
    special = r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|\](?=[(\[])|&(?=[\w#])"
    return re.sub(special, r"\\\g<0>", " ".join(text.split()))


def markdown_table(table: Table) -> str:
    """Write a table as markdown."""
    rule = ["---", *(["---:" if table.of_numbers else "---"] * (len(table.headings) - 1))]
    rows = [[f"{cell.text} {cell.detail}".rstrip() for cell in row] for row in table.rows]
    escaped = [[markdown_text(text) for text in row] for row in [table.headings, *rows]]
    return "".join(f"| {' | '.join(row)} |\n" for row in [escaped[0], rule, *escaped[1:]])


def html_table(table: Table, kind: str = "") -> str:
    """Write a table as HTML of CSS class `kind`; one of "sortable" gets buttons in its headings."""
    opening = '<th scope="col" class="number">' if table.of_numbers else '<th scope="col">'
    openings = ['<th scope="col">', *[opening] * (len(table.headings) - 1)]
    headings = [escape(text) for text in table.headings]
    if kind == "sortable":
        headings = [f'<button type="button">{text}</button>' for text in headings]
    head = "".join(f"{start}{text}</th>" for start, text in zip(openings, headings, strict=True))
    rows = [
        _html_name(row[0], kind) + "".join(_html_cell(cell, table.of_numbers) for cell in row[1:])
        for row in table.rows
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<table class="{kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'
    )


def _html_name(cell: Cell, kind: str) -> str:
    """Write the first cell of a row; in a sortable table its detail is the id of a figure."""
    text = escape(cell.text)
    if cell.detail and kind == "sortable":
        text = f'<a href="#{cell.detail}">{text}</a>'
    return f'<th scope="row" data-value="{escape(cell.text)}">{text}</th>'


def _html_cell(cell: Cell, is_number: bool) -> str:
    text, detail = escape(cell.text), escape(cell.detail)
    if detail:
        text += f' <span class="small {cell.tone}">{detail}</span>'
    elif cell.tone:
        text = f'<span class="{cell.tone}">{text}</span>'
    if not is_number:
        return f"<td>{text}</td>"
    key = "" if cell.value is None or math.isnan(cell.value) else json.dumps(cell.value)
    return f'<td class="number" data-value="{key}">{text}</td>'


def fill(template: str, **parts: str) -> str:
    """Fill a template file of the package; the parts are HTML."""
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(parts)


def page(template: str, title: str, **parts: str) -> str:
    """Make a page whose own policy forbids it every resource, style and script but its own."""
    style, script = (
        (TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    return fill(
        "page.html",
        title=escape(title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        content=fill(template, title=escape(title), **parts),
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def data_uri(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> str:
    """Embed a picture as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; bytes of file names that are no text become question marks."""
    path.write_text(text, encoding="utf-8", errors="replace")
