"""The reports' texts; tests/test_report_browser.py opens the pages."""

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluation_folder import LR, RESTORED, TRUTH, plain, write_evaluation
from photos import enlarge, photo
from PIL import Image

import upsr_jax
from upsr_jax.evaluation.report import compare, write_report
from upsr_jax.evaluation.report.plot import Point, scatter_plot
from upsr_jax.evaluation.report.rendering import (
    PAGES,
    Cell,
    Table,
    data_uri,
    markdown_table,
    markdown_text,
)
from upsr_jax.evaluation.report.results import common_images, paired_difference, rank
from upsr_jax.evaluation.report.single import SAMPLE, SIDE, choose_shown, load_views
from upsr_jax.files.write_photo import write_image

STYLE = Path(upsr_jax.__file__).parent / "assets" / "report" / "report.css"
IMAGES = {
    "a": {"psnr_y": 30.5, "bicubic_psnr_y": 28.0, "lpips_vgg": 0.125},
    "b/c": {"psnr_y": 20.5, "bicubic_psnr_y": 21.0, "lpips_vgg": 0.375},
}


def report_of(out, *args, **changes):
    write_evaluation(out, *args, **changes)
    write_report(out)
    return (out / "report.html").read_text("utf-8"), (out / "results.md").read_text("utf-8")


class Attributes(HTMLParser):
    """Collect all attributes of a page, and that its elements close in order."""

    VOID = ("meta", "img", "input")

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def values(self, attribute):
        return [value for _, name, value in self.found if name == attribute]


def test_means_stand_beside_bicubic(tmp_path):
    html, markdown = report_of(tmp_path / "ours", IMAGES)
    assert "| PSNR-Y ↑ | 24.500 | 25.500 | +1.000 | [20.500, 30.500] | 2 |" in markdown
    assert "| LPIPS-VGG ↓ | – | 0.2500 |  | [0.1250, 0.3750] | 2 |" in markdown
    assert 'data-value="">25.500</td>' in html and '<span class="better">+1.000' in html


def test_a_mean_over_a_part_says_so(tmp_path):
    _, markdown = report_of(tmp_path, {"a": {"psnr_y": 20.0}, "b": {"psnr_y": None}})
    assert "| PSNR-Y ↑ | – | 20.000 |  | [20.000, 20.000] | 1 of 2 |" in markdown


def test_a_mean_over_equal_pictures_says_so(tmp_path):
    mean = {"mean": 55.0, "low": 30.0, "high": 80.0, "images": 2}
    means = {"psnr_y": {**mean, "capped": 1}, "bicubic_psnr_y": {**mean, "capped": 2}}
    rows = {name: {"psnr_y": value} for name, value in (("a", 30.0), ("b", 80.0))}
    html, markdown = report_of(tmp_path, rows, pictures=False, means=means)
    assert "| [30.000, 80.000] | 2, 1 capped, 2 capped of bicubic |" in markdown
    for text in (html, markdown):
        assert "2, 1 capped, 2 capped of bicubic" in text and "80 dB are taken, which lift" in text
    assert "80 dB" not in report_of(tmp_path, rows, pictures=False)[1]


def test_a_higher_lpips_is_worse(tmp_path):
    row = {"lpips_vgg": 0.5, "bicubic_lpips_vgg": 0.25}
    html, _ = report_of(tmp_path, {"a": row})
    assert '<span class="worse">+0.2500</span>' in html


def test_protocol_timing_and_problems_are_listed(tmp_path):
    html, markdown = report_of(tmp_path, IMAGES, broken={"x|y.png": "damaged *here*"})
    for text in (html, markdown):
        assert "ddim, 5 steps" in text and "6.0 (75.0%)" in text
    assert r"| x\|y.png | damaged \*here\* |" in markdown
    assert "damaged *here*" in html and "1 image could not be measured" in markdown


def test_page_needs_nothing_else(tmp_path):
    html, _ = report_of(tmp_path, IMAGES)
    attributes = Attributes(html)
    assert all(value.startswith("data:image/webp;base64,") for value in attributes.values("src"))
    assert all(value.startswith("#") for value in attributes.values("href"))
    assert attributes.values("style") == [] and "@import" not in html and "url(" not in html
    assert not re.search(r"https?://|//\w+\.", re.sub("base64,[^\"']*", "", html))


def test_policy_names_the_style_and_the_script(tmp_path):
    html, _ = report_of(tmp_path, IMAGES)
    (policy,) = [value for value in Attributes(html).values("content") if "default-src" in value]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_links_lead_to_figures_and_controls_have_names(tmp_path):
    attributes = Attributes(report_of(tmp_path, IMAGES, broken={"x": "y"})[0])
    ids = attributes.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in attributes.values("href")} <= set(ids)
    labels = attributes.values("aria-label")
    assert sum(label.startswith("Divider, bicubic on its left: ") for label in labels) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ('<b>&"', "&lt;b&gt;&amp;&#34;"),
        ("$title ${x}", "$title ${x}"),
        ("ü 写真", "ü 写真"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no text
        ("\x1b[31m\x1b]0;t\a\r\n\u202egnp", r"\x1b[31m\x1b]0;t\x07\r\n\u202egnp"),
    ],
)
def test_odd_names_are_only_text(tmp_path, name, shown):
    html, markdown = report_of(tmp_path, {name: IMAGES["a"]}, pictures=False, broken={name: name})
    Attributes(html)
    assert f"<h3>{shown}</h3>" in html and f"<td>{shown}</td>" in html
    page = html.partition("<body>")[2].partition("<script>")[0]
    assert all(line.isprintable() for text in (page, markdown) for line in text.split("\n"))


def test_markdown_shows_names_as_they_are():
    assert markdown_text("lite_x4 [1.0, 2.0]") == "lite_x4 [1.0, 2.0]"
    assert markdown_text("_a_ *b* `c` <d> | \\") == r"\_a\_ \*b\* \`c\` \<d\> \| \\"
    assert markdown_text("[a](b)\n&amp;") == r"[a\](b)\\n\&amp;"


def test_tables_keep_their_columns():
    table = Table(["Name", "x|y"], [[Cell("a\nb"), Cell("1", "(2|3)", value=1.0)]])
    assert markdown_table(table) == "| Name | x\\|y |\n| --- | ---: |\n| a\\\\nb | 1 (2\\|3) |\n"
    html = vars(PAGES.get_template("table.html").module)["html_table"](table, "sortable")
    assert 'data-value="1.0"' in html and html.count("<button") == 2


def test_missing_pictures_are_named(tmp_path):
    write_evaluation(tmp_path, {"a": IMAGES["a"]})
    (tmp_path / "uncertainty" / "a.png").unlink()
    (tmp_path / "gt" / "a.png").write_bytes(b"no picture")
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert f"Uncertainty is missing: {tmp_path}/uncertainty/a.png: no such file." in html
    assert "Ground truth is missing:" in html and len(Attributes(html).values("src")) == 2


def test_images_without_ground_truth(tmp_path):
    write_evaluation(tmp_path, {"a": {"niqe": 5.0}})
    results = json.loads((tmp_path / "results.json").read_text())
    results["images"]["a"]["gt"] = None
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "missing" not in html.partition("<main>")[2].partition("<script>")[0]
    assert len(Attributes(html).values("src")) == 3


def test_low_resolution_made_from_the_centre_of_the_ground_truth(tmp_path):
    write_evaluation(tmp_path, {"a": IMAGES["a"]})
    gt = plain(LR, 100)
    gt[18:82, 18:82] = TRUTH  # the 64 x 64 pixels that were restored
    write_image(tmp_path / "gt" / "a.png", gt, overwrite=True)
    row = json.loads((tmp_path / "results.json").read_text())["images"]["a"]
    views, missing = load_views(tmp_path, "a", {**row, "lr": None})
    np.testing.assert_array_equal(views["truth"], plain(TRUTH, 64))
    assert "bicubic" not in views and "was made and not stored" in missing[0]


def test_nothing_measured(tmp_path):
    html, markdown = report_of(tmp_path, {}, metrics={"psnr_y": True}, broken={"a": "damaged"})
    Attributes(html)
    assert "| PSNR-Y ↑ | – | – |  | – | 0 |" in markdown


def test_thousands_of_images_show_a_sample_and_the_extremes():
    values = np.random.default_rng(0).permutation(3000).astype(float)
    rows = {f"{i:04}": {"psnr_y": value, "niqe": -value} for i, value in enumerate(values)}
    shown = choose_shown({"metrics": {"psnr_y": True, "niqe": False}, "images": rows})
    by_value = sorted(rows, key=lambda name: rows[name]["psnr_y"])
    assert {*by_value[:3], *by_value[-3:], "0000", "2999"} <= set(shown)
    assert SAMPLE <= len(shown) <= SAMPLE + 6 and shown == sorted(shown)
    positions = np.array([int(name) for name in shown])
    assert np.diff(positions).max() <= 3000 / (SAMPLE - 1) + 1


def test_the_page_says_that_it_shows_a_part(tmp_path):
    rows = {f"{i:03}": {"psnr_y": float(i)} for i in range(100)}
    html, _ = report_of(tmp_path, rows, pictures=False)
    shown = re.search(r"(\d+) of 100 images: the 3 worst and best by each metric", html)
    assert shown and int(shown[1]) == html.count("<figure")
    assert html.count('<th scope="row" data-value=') >= 100


def test_large_pictures_are_cut_to_the_same_centre(tmp_path):
    size = SIDE // 4 + 51
    lr = photo(size, size)
    write_evaluation(tmp_path, {"a": IMAGES["a"]})
    write_image(tmp_path / "lr" / "a.png", lr, overwrite=True)
    write_image(tmp_path / "images" / "a.png", enlarge(lr), overwrite=True)
    row = json.loads((tmp_path / "results.json").read_text())["images"]["a"]
    views, _ = load_views(tmp_path, "a", row)
    assert views["restored"].shape == views["bicubic"].shape == (SIDE, SIDE, 3)
    # Both are the same pixels, so that they agree better than if either were moved.
    difference = [
        np.abs(
            np.roll(views["restored"], shift, axis=(0, 1)).astype(float) - views["bicubic"]
        ).mean()
        for shift in ((0, 0), (4, 4), (-4, -4))
    ]
    assert difference[0] < 0.5 * min(difference[1:])


def test_embedded_pictures_look_the_same():
    uri = data_uri(plain(RESTORED, 16), 90)
    decoded = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    np.testing.assert_allclose(np.asarray(decoded, int), plain(RESTORED, 16), atol=6)


def test_rank_puts_the_best_first_and_leaves_out_missing_values():
    rows = {
        "a": {"niqe": 5.0},
        "b": {"niqe": None},
        "c": {"niqe": 3.0},
        "d": {},
        "e": {"niqe": np.nan},
    }
    assert rank({"images": rows, "metrics": {"niqe": False}}, "niqe") == ["c", "a"]


def test_no_results_and_damaged_results(tmp_path):
    with pytest.raises(ValueError, match=r"no results\.json"):
        write_report(tmp_path)
    for damaged in (b'{"images":', b"\xff", b"[" * 100_000, b""):
        (tmp_path / "results.json").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"results\.json: damaged .*; run the evaluation again"
        ):
            write_report(tmp_path)


def kind_of(value):
    return int if isinstance(value, float) else type(value)


def paths_of(value, path=()):
    """List the ways to all values of a tree."""
    items = value.items() if isinstance(value, dict) else ()
    return [path, *(p for key, each in items for p in paths_of(each, (*path, key)))]


def test_results_of_another_kind_are_refused_in_one_sentence(tmp_path):
    """Every value in turn is one of every other kind; a protocol and some others may be."""
    write_evaluation(tmp_path, IMAGES, pictures=False, broken={"x": "y"})
    file = tmp_path / "results.json"
    whole = file.read_text()
    for path, other in itertools.product(
        paths_of(json.loads(whole)), (None, [1, 2], {}, "x", 1, np.inf)
    ):
        results = {"": json.loads(whole)}
        *above, last = ("", *path)
        place = results
        for key in above:
            place = place[key]
        if kind_of(place[last]) is kind_of(other) and other != np.inf:
            continue
        place[last] = other
        file.write_text(json.dumps(results[""]))
        try:
            write_report(tmp_path)
        except ValueError as error:
            assert str(error) == f"{file}: not what an evaluation writes; run the evaluation again"
        else:
            assert path[:1] in (("protocol",), ("images",), ("metrics",), ("means",))


def test_compare_pairs_images_and_says_what_differs(tmp_path):
    first = {name: {"psnr_y": float(ord(name))} for name in "abcd"}
    other = {name: {"psnr_y": float(ord(name) + 1)} for name in "abc"}
    write_evaluation(tmp_path / "one", first, pictures=False)
    write_evaluation(tmp_path / "two", other, pictures=False, protocol={"sampler": "one_step"})
    markdown = compare([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
    # A constant difference over the three common images has an interval without width.
    assert "| two | +1.000 [+1.000, +1.000] |" in markdown
    assert "one has 4, two 3, 3 are in both, by name and content" in markdown
    assert "Not the same protocol: sampler, seed differ." in markdown
    assert "| sampler | ddim, 5 steps | one_step |" in markdown and "| seed | 0 | – |" in markdown
    assert (tmp_path / "both" / "compare.md").read_text("utf-8") == markdown
    Attributes((tmp_path / "both" / "compare.html").read_text("utf-8"))


def test_compare_the_same_with_the_same(tmp_path):
    for parent in ("x", "y"):
        write_evaluation(tmp_path / parent / "ours", IMAGES, pictures=False)
    folders = [tmp_path / "x" / "ours", tmp_path / "y" / "ours"]
    markdown = compare(folders, tmp_path)
    assert "- Same images and same protocol." in markdown
    assert all(str(folder) in markdown for folder in folders)
    with pytest.raises(ValueError, match="at least 2 evaluations, not 1"):
        compare(folders[:1], tmp_path)


def test_paired_difference_leaves_out_what_cannot_be_compared():
    first = {"images": {"a": {"psnr_y": 2.0}, "b": {"psnr_y": 1.0}, "c": {"psnr_y": None}}}
    other = {"images": {"d": {"psnr_y": 3.0}, "b": {"psnr_y": 4.0}, "c": {"psnr_y": 2.0}}}
    assert paired_difference(first, other, "psnr_y") == (3.0, 3.0, 3.0)
    assert paired_difference(first, {"images": {}}, "psnr_y") is None


def test_images_of_one_name_but_other_content_are_not_compared(tmp_path):
    first = {"images": {"a": {"gt": "x", "sha256": "1"}, "b": {"gt": "x", "sha256": "2"}}}
    other = {"images": {"b": {"gt": "y", "sha256": "2"}, "a": {"gt": "y", "sha256": "3"}}}
    assert common_images(first, other) == ["b"]
    without = {"images": {"a": {"gt": None, "sha256": "4"}}}  # nor is the truth in its hash
    assert common_images(first, without) == ["a"]
    for name in ("one", "two"):
        write_evaluation(tmp_path / name, IMAGES, pictures=False)
    changed = json.loads((tmp_path / "two" / "results.json").read_text())
    changed["images"][next(iter(changed["images"]))]["sha256"] = "other"
    (tmp_path / "two" / "results.json").write_text(json.dumps(changed))
    markdown = compare([tmp_path / "one", tmp_path / "two"], tmp_path)
    assert f"{len(IMAGES) - 1} are in both, by name and content" in markdown


def test_compare_without_any_measured_image_is_refused(tmp_path):
    for name in ("a", "b"):
        write_evaluation(tmp_path / name, {}, broken={"x": "empty"})
    with pytest.raises(ValueError, match="a, b: no image could be measured"):
        compare([tmp_path / "a", tmp_path / "b"], tmp_path)
    write_evaluation(tmp_path / "c", IMAGES, pictures=False)
    assert "| c | 25.500" in compare([tmp_path / "a", tmp_path / "c"], tmp_path)


def test_compare_shows_bicubic_and_plots_opposed_metrics(tmp_path):
    row = {"psnr_y": 24.0, "ssim_y": 0.7, "lpips_vgg": 0.3}
    row |= {f"bicubic_{metric}": value - 0.125 for metric, value in row.items()}
    for name in ("one", "two"):
        write_evaluation(tmp_path / name, {"a": row}, pictures=False)
    markdown = compare([tmp_path / "one", tmp_path / "two"], tmp_path)
    assert "| bicubic | 23.875 [23.875, 23.875] |" in markdown
    html = (tmp_path / "compare.html").read_text("utf-8")
    labels = [label for label in Attributes(html).values("aria-label") if " against " in label]
    assert labels == ["PSNR-Y ↑ against LPIPS-VGG ↓"] and html.count("<circle") == 3


def test_plot_places_points_on_its_axes():
    svg = scatter_plot(
        [Point("p", 0.1, 20.0), Point("<q>", 0.3, 24.0), Point("r", 0.2, 22.0)], "x", "y"
    )
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    (px, py), (rx, ry), (qx, qy) = sorted(tuple(map(float, circle)) for circle in circles)
    assert rx - px == pytest.approx(qx - rx, abs=0.2) and py - ry == pytest.approx(ry - qy, abs=0.2)
    assert "&lt;q&gt;" in svg and "<q>" not in svg


def test_plotted_names_do_not_cover_each_other():
    svg = scatter_plot([Point(f"p{i}", 0.1, 20.0) for i in range(8)], "x", "y")
    heights = sorted(float(y) for y in re.findall(r'class="name" x="[\d.]+" y="([\d.]+)"', svg))
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 16


def test_a_sweep_of_one_setting_is_plotted_over_it(tmp_path):
    folders = [tmp_path / f"fidelity {value}" for value in (0.0, 0.5, 1.0)]
    for folder, value in zip(folders, (0.0, 0.5, 1.0), strict=True):
        row = {"psnr_y": 24.0 + value, "lpips_vgg": 0.4 + value / 10}
        protocol = {"sampler": "one_step", "fidelity": value}
        write_evaluation(folder, {"a": row}, pictures=False, protocol=protocol)
    compare(folders, tmp_path)
    html = (tmp_path / "compare.html").read_text("utf-8")
    labels = [label for label in Attributes(html).values("aria-label") if " against " in label]
    assert labels[1:] == ["PSNR-Y ↑ against fidelity", "LPIPS-VGG ↓ against fidelity"]
    assert "<h2>Effect of fidelity</h2>" in html


@pytest.mark.parametrize(
    "protocols",
    [
        [{"fidelity": 0.0, "seed": 0}, {"fidelity": 0.5, "seed": 1}],
        [{"sampler": "ddim"}, {"sampler": "ancestral"}],
        [{"seed": 0}, {"seed": 0}],
        [{"seed": 0}, {}],
    ],
)
def test_what_is_no_sweep_of_one_number_is_not_plotted_as_one(tmp_path, protocols):
    for name, protocol in zip(("one", "two"), protocols, strict=True):
        write_evaluation(tmp_path / name, IMAGES, pictures=False, protocol=protocol)
    compare([tmp_path / "one", tmp_path / "two"], tmp_path)
    assert "Effect of" not in (tmp_path / "compare.html").read_text("utf-8")


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    found = re.findall(r"--(\w+): (#\w{6})", {"light": light, "dark": dark}[scheme])
    colours = {name: luminance(colour) for name, colour in found}
    for text in ("ink", "soft", "accent", "better", "worse"):
        for ground in ("paper", "card", "tint"):
            low, high = sorted((colours[text], colours[ground]))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
