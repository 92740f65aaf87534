"""The pages in a real headless Chromium: what a reader sees and can do."""

import numpy as np
import pytest
from browser import start_browser
from evaluation_folder import LR, RESTORED, TRUTH, write_evaluation

from upsr_jax.evaluation.report import compare, write_report

HOSTILE = "a<img src=x onerror='window.hacked = 1'>&\"ü"
IMAGES = {
    "b": {"psnr_y": 21.0, "bicubic_psnr_y": 20.0, "lpips_vgg": 0.4},
    "c": {"psnr_y": 9.5, "bicubic_psnr_y": 20.0, "lpips_vgg": 0.5},
    HOSTILE: {"psnr_y": 30.0, "bicubic_psnr_y": 20.0, "lpips_vgg": None},
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations") / "ours"
    write_evaluation(folder, IMAGES, broken={"</script><b>d": "damaged"})
    write_report(folder)
    return folder


@pytest.fixture
def report(browser, folder):
    browser.open(folder / "report.html")
    return browser


def scroll_to_stage(browser):
    """Scroll the first figure into view; return its picture's left, top, width and height."""
    return browser.run(
        """(() => {
          const stage = document.querySelector(".stage");
          stage.scrollIntoView({ block: "center" });
          const box = stage.getBoundingClientRect();
          return [box.left, box.top, box.width, box.height];
        })()"""
    )


def colours(browser, box):
    """Return the colours an eighth and seven eighths along the first picture, above its middle."""
    left, top, width, height = box
    shot, y = browser.screenshot(), round(top + height / 4)
    return [shot[y, round(left + width * share)].astype(int) for share in (1 / 8, 7 / 8)]


def assert_colours(browser, box, left, right):
    # WebP rounds colours a little.
    np.testing.assert_allclose(colours(browser, box), [left, right], atol=8)


def test_page_renders_and_fetches_nothing(report):
    assert report.run("document.querySelector('h1').textContent") == "ours"
    assert report.run("document.querySelectorAll('figure').length") == len(IMAGES)
    assert report.run("[...document.images].every((image) => image.naturalWidth > 0)")
    requests = report.messages("Network.requestWillBeSent")
    schemes = [message["request"]["url"].partition(":")[0] for message in requests]
    assert schemes.count("file") == 1 and set(schemes) <= {"file", "data"}
    assert report.messages("Log.entryAdded", "Runtime.exceptionThrown") == []


def test_policy_refuses_what_the_page_does_not_bring(report):
    refused = report.run(
        """new Promise((resolve) => {
          document.addEventListener("securitypolicyviolation", (e) => resolve(e.blockedURI));
          new Image().src = "http://127.0.0.1:9/a.png";
        })"""
    )
    assert refused == "http://127.0.0.1:9/a.png"
    report.run("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"hacked = 1\">x</b>')")
    report.run("document.querySelector('b[onclick]').click()")
    assert report.run("typeof window.hacked") == "undefined"


def test_names_are_text(report):
    names = report.run("[...document.querySelectorAll('figure h3')].map((h) => h.textContent)")
    assert names == list(IMAGES)
    assert report.run("typeof window.hacked") == "undefined"


def test_divider_follows_keys(report):
    box = scroll_to_stage(report)
    assert_colours(report, box, LR, RESTORED)
    report.run("document.querySelector('.stage input').focus()")
    report.press("ArrowRight")
    assert report.run("document.querySelector('.stage input').value") == "51"
    report.press("End")
    assert_colours(report, box, LR, LR)
    report.press("Home")
    assert_colours(report, box, RESTORED, RESTORED)


def test_divider_follows_mouse(report):
    left, top, width, height = box = scroll_to_stage(report)
    y = top + height / 2
    report.mouse("mousePressed", left + width / 2, y)
    report.mouse("mouseMoved", left + width * 0.95, y)
    assert_colours(report, box, LR, LR)
    report.mouse("mouseReleased", left + width * 0.95, y, buttons=0)
    report.mouse("mouseMoved", left + width * 0.05, y, buttons=0)
    assert_colours(report, box, LR, LR)


def test_divider_follows_touch(report):
    left, top, width, height = box = scroll_to_stage(report)
    y = top + height / 2
    report.touch("touchStart", (left + width / 2, y))
    for share in (0.4, 0.2, 0.03):
        report.touch("touchMove", (left + width * share, y))
    report.touch("touchEnd")
    assert_colours(report, box, RESTORED, RESTORED)


@pytest.mark.parametrize("where", [".choice input", ".toolbar button"])
def test_ground_truth_and_uncertainty_on_the_right(report, where):
    box = scroll_to_stage(report)

    def choose(view):
        report.run(
            f"document.querySelector('{where}:is([value={view}], [data-view={view}])').click()"
        )

    choose("truth")
    assert_colours(report, box, LR, TRUTH)
    choose("uncertainty")
    # 0.8 of inferno's last colour, which all of this map is, over the restored one.
    overlay = 0.8 * np.array([252, 255, 164]) + 0.2 * np.array(RESTORED)
    assert_colours(report, box, LR, overlay)
    choose("restored")
    assert_colours(report, box, LR, RESTORED)


def test_table_sorts_both_ways_with_missing_values_last(report):
    def sort(column):
        report.run(f"document.querySelectorAll('.sortable th button')[{column}].click()")
        rows = "[...document.querySelectorAll('.sortable tbody tr')]"
        return report.run(f"{rows}.map((row) => row.cells[0].textContent)")

    assert sort(1) == ["c", "b", HOSTILE]  # as numbers: 9.5 before 21
    assert sort(1) == [HOSTILE, "b", "c"]
    assert sort(2) == ["b", "c", HOSTILE]
    assert sort(2) == ["c", "b", HOSTILE]
    assert sort(0) == [HOSTILE, "b", "c"]
    assert report.run("document.querySelectorAll('[aria-sort]').length") == 1


def test_worst_and_best_show_the_gallerys_pictures(report):
    thumbnails = "[...document.querySelectorAll('a.thumbnail')]"
    assert report.run(
        f"{thumbnails}.every((link) => link.querySelector('img').src ==="
        " document.querySelector(link.hash + ' img.base').src)"
    )
    names = report.run(f"{thumbnails}.map((link) => link.querySelector('span').textContent)")
    assert names[:3] == ["c", "b", HOSTILE] and names[3:6] == [HOSTILE, "b", "c"]


def test_dark_where_the_reader_prefers_it(report):
    light = report.screenshot()[5, 5]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    report.send("Emulation.setEmulatedMedia", features=features)
    dark = report.screenshot()[5, 5]
    report.send("Emulation.setEmulatedMedia", features=[])
    assert light.min() > 230 and dark.max() < 50


@pytest.mark.parametrize("page", ["report.html", "compare.html"])
def test_page_fits_a_phone(browser, folder, page):
    compare([folder, folder], folder)
    browser.open(folder / page, width=360)
    assert browser.run("document.documentElement.scrollWidth") <= 360


def test_comparison_renders_its_plot(browser, folder, tmp_path):
    other = tmp_path / "other"
    write_evaluation(other, {"b": {"psnr_y": 25.0, "lpips_vgg": 0.3}}, pictures=False)
    compare([folder, other], tmp_path)
    browser.open(tmp_path / "compare.html")
    places = browser.run(
        "[...document.querySelectorAll('.plot circle')].map((c) => [c.cx.baseVal.value,"
        " c.cy.baseVal.value])"
    )
    (ours_x, ours_y), (other_x, other_y) = sorted(places, reverse=True)
    # The other one has a lower LPIPS, so lies left, and a higher PSNR, so lies above.
    assert other_x < ours_x and other_y < ours_y
    assert browser.messages("Log.entryAdded", "Runtime.exceptionThrown") == []
