"""Compare several evaluations: means, differences image by image, and what else is not the same."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upsr_jax.evaluation.report.plot import Point, scatter_plot
from upsr_jax.evaluation.report.rendering import (
    MISSING,
    Cell,
    Table,
    format_number,
    markdown_table,
    markdown_text,
    render,
    text_table,
    write_text,
)
from upsr_jax.evaluation.report.results import (
    common_images,
    digits_of,
    format_range,
    heading_of,
    headings_of,
    mean_of,
    paired_difference,
    read_results,
    tone_of,
)
from upsr_jax.files.find import check_local


class Evaluation(NamedTuple):
    """The results.json of one evaluation and what to call it."""

    name: str
    results: Mapping[str, Any]


def compare(folders: Sequence[Path], out: Path) -> str:
    """Put evaluations side by side in `out`/compare.md and compare.html; return the markdown.

    Differences are from the first one, over the images that both have. Raises ValueError for fewer
    than two folders, one without results, or no metric in any.
    """
    check_local(out)
    if len(folders) < 2:
        raise ValueError(f"compare needs at least 2 evaluations, not {len(folders)}")
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    evaluations = [
        Evaluation(name, read_results(path)) for name, path in zip(names, paths, strict=True)
    ]
    if not _all_metrics(evaluations):
        raise ValueError(f"{', '.join(names)}: no image could be measured, so nothing compares")
    title = f"Comparison of {len(names)} evaluations"
    notes, differing = _list_differences(evaluations)
    means, differences = _compare_means(_with_bicubic(evaluations)), _compare_images(evaluations)
    markdown = (
        f"# {markdown_text(title)}\n\n"
        + "".join(f"- {markdown_text(note)}\n" for note in notes)
        + f"\n## Means\n\n{markdown_table(means)}\n"
        + f"## Differences from {markdown_text(names[0])}\n\n{markdown_table(differences)}\n"
        + f"## What differs\n\n{markdown_table(differing)}"
    )
    setting, sweep = _sweep(evaluations, differing)
    html = render(
        "compare.html",
        title=title,
        names=names,
        notes=notes,
        means=means,
        differences=differences,
        trade_offs=_trade_offs(_with_bicubic(evaluations)),
        setting=setting,
        sweep=sweep,
        differing=differing,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.md", markdown)
    write_text(out / "compare.html", html)
    return markdown


def _all_metrics(evaluations: Sequence[Evaluation]) -> dict[str, bool]:
    """List the metrics of all evaluations, and whether higher is better."""
    return {m: higher for each in evaluations for m, higher in each.results["metrics"].items()}


def _list_differences(evaluations: Sequence[Evaluation]) -> tuple[list[str], Table]:
    """Say what is not the same, images and protocol, and list the settings that differ."""
    notes = []
    first = evaluations[0]
    for other in evaluations[1:]:
        counts = [len(each.results["images"]) for each in (first, other)]
        common = len(common_images(first.results, other.results))
        if counts != [common, common]:
            notes.append(
                f"Not the same images: {first.name} has {counts[0]:,}, {other.name} "
                f"{counts[1]:,}, {common:,} are in both, by name and content. "
                "Means are over each one's own images."
            )
    protocols = [each.results["protocol"] for each in evaluations]
    keys = list(dict.fromkeys(key for protocol in protocols for key in protocol))
    rows = [[key, *(str(protocol.get(key, MISSING)) for protocol in protocols)] for key in keys]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        names = ", ".join(row[0] for row in rows)
        notes.append(f"Not the same protocol: {names} {'differs' if len(rows) == 1 else 'differ'}.")
    return (
        notes or ["Same images and same protocol."],
        text_table(["Setting", *(each.name for each in evaluations)], rows),
    )


def _with_bicubic(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Put the bicubic enlargement of the first evaluation's images first, if it was measured."""
    first = evaluations[0].results
    means = {
        metric: first["means"][f"bicubic_{metric}"]
        for metric in first["metrics"]
        if f"bicubic_{metric}" in first["means"]
    }
    metrics = {metric: first["metrics"][metric] for metric in means}
    bicubic = [Evaluation("bicubic", {"metrics": metrics, "means": means})] if means else []
    return [*bicubic, *evaluations]


def _compare_means(evaluations: Sequence[Evaluation]) -> Table:
    metrics = _all_metrics(evaluations)
    rows = []
    for name, results in evaluations:
        cells = [Cell(name)]
        for metric in metrics:
            interval, digits = results["means"].get(metric), digits_of(results, metric)
            detail = format_range(interval, digits) if interval else ""
            cells.append(Cell(format_number(mean_of(results, metric), digits), detail))
        rows.append(cells)
    return Table(["Evaluation", *headings_of(metrics)], rows)


def _compare_images(evaluations: Sequence[Evaluation]) -> Table:
    """Compare every evaluation with the first, image by image."""
    metrics = _all_metrics(evaluations)
    first, *others = evaluations
    rows = []
    for other in others:
        cells = [Cell(other.name)]
        for metric, higher in metrics.items():
            interval = paired_difference(first.results, other.results, metric)
            if interval is None:
                cells.append(Cell(MISSING))
                continue
            digits = digits_of(other.results, metric)
            clear = interval.low > 0 or interval.high < 0
            mean = format_number(interval.mean, digits, "+")
            tone = tone_of(interval.mean, higher) if clear else ""
            cells.append(Cell(mean, format_range(interval._asdict(), digits, "+"), tone))
        rows.append(cells)
    return Table(["Evaluation", *headings_of(metrics)], rows)


def _trade_offs(evaluations: Sequence[Evaluation]) -> list[str]:
    """Plot the first metric against those of the other direction."""
    metrics = _all_metrics(evaluations)
    (first, higher), *others = metrics.items()
    plots = [
        _plot(
            {each.name: (_mean(each, metric), _mean(each, first)) for each in evaluations},
            heading_of(metric, direction),
            heading_of(first, higher),
        )
        for metric, direction in others
        if direction != higher
    ]
    return list(filter(None, plots))


def _sweep(evaluations: Sequence[Evaluation], differing: Table) -> tuple[str, list[str]]:
    """Plot every metric over the one number in which the protocols differ, if it is just one.

    Returns the name of that setting and the plots, "" and none otherwise.
    """
    if len(differing.rows) != 1:
        return "", []
    setting = differing.rows[0][0].text
    values = [each.results["protocol"].get(setting) for each in evaluations]
    if not all(isinstance(value, int | float) for value in values):
        return "", []
    plots = [
        _plot(
            {
                each.name: (float(value), _mean(each, metric))
                for each, value in zip(evaluations, values, strict=True)
            },
            setting,
            heading_of(metric, higher),
        )
        for metric, higher in _all_metrics(evaluations).items()
    ]
    return setting, list(filter(None, plots))


def _mean(each: Evaluation, metric: str) -> float:
    """Return a mean, or NaN if it is not there."""
    mean = mean_of(each.results, metric)
    return math.nan if mean is None else mean


def _plot(places: Mapping[str, tuple[float, float]], x_label: str, y_label: str) -> str:
    """Plot a named point for each evaluation as SVG; fewer than two make no plot: "".

    What was not measured has no place.
    """
    points = [Point(name, x, y) for name, (x, y) in places.items() if math.isfinite(x + y)]
    return scatter_plot(points, x_label, y_label) if len(points) > 1 else ""
