"""Report one evaluation: results.md and report.html beside its results.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

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
    CAPPED,
    count_of,
    difference_cell,
    digits_of,
    format_range,
    heading_of,
    headings_of,
    label_of,
    mean_of,
    rank,
    read_results,
    value_of,
)
from upsr_jax.files.photos import ImageError, read_image

# 3,000 images would make a page of gigabytes. These limits keep it to about 10 MB.
EXTREMES = 3  # pictures shown as worst and as best by each metric
SAMPLE = 40  # further pictures, evenly spaced by name
SIDE = 768  # pixels a side of a picture, cut from the centre of a larger one
QUALITY = 90  # of WebP

# Of these the first one there is gives a figure its size; the bicubic one lies above the others.
LABELS = {
    "restored": "Restored",
    "truth": "Ground truth",
    "uncertainty": "Uncertainty",
    "bicubic": "Bicubic",
}


def write_report(out: Path) -> None:
    """Write results.md and report.html into an evaluation's folder, from what lies there.

    Pictures that are missing or damaged are named on the page. Raises ValueError if there is no
    whole results.json.
    """
    out = Path(out)
    name, results = out.resolve().name, read_results(out)
    write_text(out / "results.md", _report_markdown(name, results))
    write_text(out / "report.html", _report_html(name, results, out))


def choose_shown(results: Mapping[str, Any]) -> list[str]:
    """Choose the images to show: worst and best by each metric, and an even sample of all."""
    names = list(results["images"])
    chosen = {names[i] for i in np.linspace(0, len(names) - 1, min(SAMPLE, len(names))).astype(int)}
    for metric in results["metrics"]:
        ranked = rank(results, metric)
        chosen |= {*ranked[:EXTREMES], *ranked[-EXTREMES:]}
    return [name for name in names if name in chosen]


def load_views(
    out: Path, name: str, row: Mapping[str, Any]
) -> tuple[dict[str, UInt8[np.ndarray, "h w 3"]], list[str]]:
    """Load the pictures of an image, at most SIDE a side, and list what is wrong with the others.

    OpenCV's cubic resize, like ours, has a = -0.75.
    """
    paths = {
        "restored": out / "images" / f"{name}.png",
        "truth": row["gt"],
        "uncertainty": out / "uncertainty" / f"{name}.png",
        "bicubic": row["lr"],
    }
    views, missing = {}, []
    for view, path in paths.items():
        if path is None:
            continue
        try:
            views[view] = read_image(path)[..., :3]
        except ImageError as error:
            missing.append(f"{LABELS[view]} is missing: {error}")
    if row["lr"] is None:
        missing.append("Bicubic is missing: the low-resolution image was made and not stored.")
        if {"restored", "truth"} <= views.keys():  # it was made of the centre of this
            views["truth"] = _cut(views["truth"], *views["restored"].shape[:2])
    elif {"restored", "truth"} <= views.keys():
        height, width = views["restored"].shape[:2]
        views["truth"] = views["truth"][:height, :width]
    # Cut before the resize, on the low-resolution grid, so that all show the same part.
    for view, image in views.items():
        scale = 1 if view == "bicubic" else 4
        views[view] = _cut(image, SIDE // 4 * scale, SIDE // 4 * scale, scale)
    if "bicubic" in views:
        views["bicubic"] = cv2.resize(
            views["bicubic"], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC
        )
    if "uncertainty" in views:
        coloured = cv2.applyColorMap(views["uncertainty"][..., 0].copy(), cv2.COLORMAP_INFERNO)
        views["uncertainty"] = coloured[..., ::-1]
    return views, missing


def _cut(image: np.ndarray, height: int, width: int, grid: int = 1) -> np.ndarray:
    """Cut the centre of at most `height` x `width` pixels, from a multiple of `grid` on."""
    top, left = (
        max(0, length - part) // (2 * grid) * grid
        for length, part in zip(image.shape[:2], (height, width), strict=True)
    )
    return image[top : top + height, left : left + width]


def _report_markdown(name: str, results: Mapping[str, Any]) -> str:
    rows = []
    for metric, higher in results["metrics"].items():
        worst, best = (", ".join(map(" ".join, group)) for group in _extremes(results, metric))
        rows.append([heading_of(metric, higher), worst, best])
    extremes = text_table(["Metric", "Worst", "Best"], rows)
    text = (
        f"# {markdown_text(name)}\n\n{_summarize(results)}\n\n"
        f"{markdown_table(_means_table(results))}\n{_about_capped(results)}"
        f"## Worst and best\n\n{markdown_table(extremes)}\n"
        f"## Protocol\n\n{markdown_table(_protocol_table(results))}\n"
        f"## Timing\n\n{markdown_table(_timing_table(results['timing']))}"
    )
    if results["broken"]:
        text += f"\n## Not measured\n\n{markdown_table(_problems_table(results))}"
    return text


def _about_capped(results: Mapping[str, Any]) -> str:
    return f"{CAPPED}\n\n" if any(mean.get("capped") for mean in results["means"].values()) else ""


def _report_html(name: str, results: Mapping[str, Any], out: Path) -> str:
    ids = {image: f"image-{i}" for i, image in enumerate(choose_shown(results))}
    return render(
        "report.html",
        title=name,
        summary=_summarize(results),
        means=_means_table(results),
        capped=_about_capped(results).strip(),
        extremes={
            heading_of(metric, higher): dict(
                zip(("Worst", "Best"), _extremes(results, metric), strict=True)
            )
            for metric, higher in results["metrics"].items()
        },
        selection=_describe_selection(results, len(ids)),
        ids=ids,
        figures=(_figure(results, image, ids[image], out) for image in ids),
        labels=LABELS,
        side=SIDE,
        quality=QUALITY,
        images=_images_table(results, ids),
        protocol=_protocol_table(results),
        timing=_timing_table(results["timing"]),
        problems=_problems_table(results),
    )


def _summarize(results: Mapping[str, Any]) -> str:
    measured, broken = len(results["images"]), len(results["broken"])
    text = f"{_count_images(measured)} upscaled four times and measured."
    return f"{text} {_count_images(broken)} could not be measured." if broken else text


def _count_images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _describe_selection(results: Mapping[str, Any], shown: int) -> str:
    total = len(results["images"])
    if shown == total:
        return f"All {total:,} images."
    return (
        f"{shown:,} of {total:,} images: the {EXTREMES} worst and best by each metric, and "
        f"{SAMPLE} spread evenly over all names."
    )


def _means_table(results: Mapping[str, Any]) -> Table:
    rows = []
    for metric, higher in results["metrics"].items():
        digits, interval = digits_of(results, metric), results["means"].get(metric)
        mean, bicubic = mean_of(results, metric), mean_of(results, f"bicubic_{metric}")
        rows.append(
            [
                Cell(heading_of(metric, higher)),
                Cell(format_number(bicubic, digits)),
                Cell(format_number(mean, digits)),
                difference_cell(mean, bicubic, digits, higher),
                Cell(format_range(interval, digits) if interval else MISSING),
                Cell(count_of(results, metric)),
            ]
        )
    return Table(["Metric", "Bicubic", "Restored", "Difference", "95% interval", "Images"], rows)


def _images_table(results: Mapping[str, Any], ids: Mapping[str, str]) -> Table:
    """List all images; those that are shown link to their figures."""
    rows = []
    for name, row in results["images"].items():
        cells = [Cell(name, detail=ids.get(name, ""))]
        for metric, higher in results["metrics"].items():
            digits, value = digits_of(results, metric), value_of(row, metric)
            bicubic = value_of(row, f"bicubic_{metric}")
            change = difference_cell(value, bicubic, digits, higher)
            cells.append(Cell(format_number(value, digits), change.text, change.tone, value))
        rows.append(cells)
    return Table(["Image", *headings_of(results["metrics"])], rows)


def _timing_table(timing: Mapping[str, int | float]) -> Table:
    """List timings; parts of the seconds also as a share."""
    rows = []
    for key, value in timing.items():
        if key == "seconds":
            cell = ("seconds in all", f"{value:,.1f}")
        elif key.endswith("_share"):
            cell = (key.replace("_", " "), f"{value:.1%}")
        elif key.endswith("_seconds") and timing["seconds"]:
            cell = (key.replace("_", " "), f"{value:,.1f} ({value / timing['seconds']:.1%})")
        else:
            cell = (key.replace("_", " "), f"{value:,.4g}" if value % 1 else f"{value:,.0f}")
        rows.append(cell)
    return text_table(["What", "How much"], rows)


def _protocol_table(results: Mapping[str, Any]) -> Table:
    return text_table(
        ["Setting", "Value"], [(key, str(value)) for key, value in results["protocol"].items()]
    )


def _problems_table(results: Mapping[str, Any]) -> Table:
    return text_table(["Image", "Why it was not measured"], list(results["broken"].items()))


def _extremes(results: Mapping[str, Any], metric: str) -> list[list[tuple[str, str]]]:
    """Return the worst images, the very worst first, and the best, the very best first.

    Each is its name and its value as text.
    """
    ranked, digits = rank(results, metric), digits_of(results, metric)
    return [
        [(name, format_number(results["images"][name][metric], digits)) for name in names]
        for names in (ranked[: -EXTREMES - 1 : -1], ranked[:EXTREMES])
    ]


def _figure(results: Mapping[str, Any], name: str, figure_id: str, out: Path) -> dict[str, Any]:
    """Gather what figure.html shows of one image: its pictures above each other and its numbers."""
    row = results["images"][name]
    views, missing = load_views(out, name, row)
    numbers = [
        (label_of(metric), format_number(row.get(metric), digits_of(results, metric)))
        for metric in results["metrics"]
    ]
    return {"id": figure_id, "name": name, "views": views, "numbers": numbers, "missing": missing}
