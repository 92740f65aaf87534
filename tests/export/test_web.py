"""The built-in model as an ONNX file, and as a page in a real headless Chromium."""

import contextlib
import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import CHROMIUM, start_browser
from PIL import Image
from typer.testing import CliRunner

from upsr_jax import cli
from upsr_jax.export import formats, web
from upsr_jax.export.web import export_web
from upsr_jax.upscale.tiles import noise_window
from upsr_jax.upscale.upscaler import Upscaler

PHOTOS = Path(cli.__file__).parent / "assets" / "photos"
TILE = 64
LINK = "!document.querySelector('#download').hidden && document.querySelector('#download')"


class Quiet(SimpleHTTPRequestHandler):
    """The plainest of static hosts: no headers of its own, and only the commonest types."""

    extensions_map = {"": "application/octet-stream", ".js": "text/javascript"} | {
        suffix: f"text/{suffix[1:]}" for suffix in (".html", ".css")
    }

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def serving(folder):
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


@pytest.fixture(scope="module", autouse=True)
def converted_once():
    """Convert and check the model once for all these tests."""
    with pytest.MonkeyPatch.context() as patch:
        make, kept = formats.make_onnx, []

        def make_onnx(*arguments):
            kept.extend([] if kept else [make(*arguments)])
            return kept[0]

        patch.setattr(formats, "make_onnx", make_onnx)
        patch.setattr(web, "make_onnx", make_onnx)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("web") / "page"
    try:
        export_web("lite_x4", out, TILE)
    except ValueError as error:
        if "npm could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    return out


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("needs chromium on the PATH")
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="module")
def page(browser, url):
    open_page(browser, url)
    return browser


def open_page(browser, url):
    """Open the page and wait for its model."""

    def open_once():
        browser.open(url)
        browser.wait_for(status_starts("Ready"))

    try:
        open_once()
    except RuntimeError:  # the first time it loads itself once more, which ends what runs in it
        open_once()


def status_starts(text):
    return f"document.querySelector('#status')?.innerText.startsWith('{text}')"


def click(page, selector):
    page.run(f"document.querySelector('{selector}').click()")


def choose(page, path):
    page.choose_file("#file", path)
    page.wait_for("!document.querySelector('#start').disabled")


def upscale(page, path) -> np.ndarray:
    """Have the page upscale a photo, and give the pixels of the file that it saves."""
    choose(page, path)
    click(page, "#start")
    page.wait_for(status_starts("Done"))
    downloads = [each for each in page.events if "download" in each.get("method", "")]
    page.events = [each for each in page.events if each not in downloads]  # of an earlier photo
    with Image.open(page.download(f"({LINK}).click()")) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_it_needs_no_noise(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "lite.onnx"
    arguments = ["export", "lite_x4", "--to", "onnx", "--out", str(out), "--size", str(TILE)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    size, equality = result.stdout.splitlines()
    assert size.startswith(f"lite_x4 for pictures of 64x64 is in {out} (") and "MB)" in size
    numbers = [float(number) for number in re.findall(r"\d\S*e-\d+", equality)]
    assert len(numbers) == 2 and 0 < numbers[0] < numbers[1] < 1e-4
    generator = np.random.default_rng(3)
    image = generator.uniform(0, 1, (1, 3, TILE, TILE)).astype(np.float32)
    noise = generator.standard_normal((1, 3, 4 * TILE, 4 * TILE), np.float32)
    session = onnxruntime.InferenceSession(out)
    assert [each.name for each in session.get_inputs()] == ["image"]
    of_noise = session.run(None, {"image": image, "noise": noise})[0]
    without = session.run(None, {"image": image})[0]
    of_zeros = session.run(None, {"image": image, "noise": np.zeros_like(noise)})[0]
    np.testing.assert_array_equal(of_zeros, without)
    assert not np.array_equal(of_noise, without)
    notes = session.get_modelmeta().custom_metadata_map
    assert notes["license"] == "apache-2.0" and "BSD 3-Clause" in notes["notice"]


@pytest.fixture(scope="module")
def upscaler():
    return Upscaler.from_pretrained(tile=TILE)


def differ(one, other):
    """Give the largest and the mean difference of two pictures, in levels of 255."""
    assert one.shape == other.shape
    difference = np.abs(one.astype(int) - other)
    return difference.max(), difference.mean()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Cut three tiles out of a packaged photo.

    In them no pixel is near to two tokens at once: gaps of similarity are above 1e-6, where float32
    is right to 3e-7. Where that isn't so, rounding moves groups of pixels by a few levels.
    """
    path = tmp_path_factory.mktemp("photos") / "my photo.png"
    Image.open(PHOTOS / "astronaut.png").convert("RGB").crop((208, 211, 312, 275)).save(path)
    return path


def test_its_pixels_are_the_commands_and_it_works_when_its_server_is_gone(
    browser, folder, photo, tmp_path
):
    out = tmp_path / "command.png"
    command = ["upscale", str(photo), "--out", str(out), "--tile", str(TILE)]
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output
    expected = np.asarray(Image.open(out))
    assert expected.shape == (256, 416, 3) and expected.std() > 20
    with serving(folder) as url:
        open_page(browser, url)
        assert browser.run("crossOriginIsolated")  # though the server sends no such headers
        assert "Model lite_x4, licence apache-2.0, on " in browser.run("document.body.innerText")
        result = upscale(browser, photo)
    assert (result[..., 3] == 255).all()
    most, mean = differ(result[..., :3], expected)
    assert most <= 1 and mean < 0.01
    download = browser.run("document.querySelector('#download').download")
    assert download == "my photo_x4.png"
    hosts = {
        urlsplit(each["request"]["url"]) for each in browser.messages("Network.requestWillBeSent")
    }
    assert {host.hostname for host in hosts if host.scheme not in ("data", "blob")} == {"127.0.0.1"}
    assert browser.messages("Runtime.exceptionThrown") == []
    logged = [each["entry"] for each in browser.messages("Log.entryAdded")]
    assert [entry for entry in logged if entry["level"] == "error"] == []

    open_page(browser, url)
    np.testing.assert_array_equal(upscale(browser, photo), result)


def test_noise_is_the_commands(page):
    """Of several blocks, with all layers of the ziggurat and its tail."""
    for window in ((0, 0, 300, 300), (700, 1300, 200, 300)):
        got = page.run(
            f"import('./noise.js').then((module) => [...module.makeNoise()(...{list(window)})])"
        )
        expected = np.moveaxis(noise_window(0, *window), -1, 0)
        assert abs(expected).max() > 3.7
        np.testing.assert_allclose(np.reshape(got, expected.shape), expected, rtol=0, atol=1e-6)


def test_a_turned_photo_is_upright_and_a_hidden_part_stays_hidden(page, upscaler, tmp_path):
    turned, hidden = tmp_path / "turned.jpg", tmp_path / "hidden.png"
    cat = Image.open(PHOTOS / "chelsea.png").convert("RGB").crop((120, 60, 180, 100))
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is on the right
    cat.save(turned, exif=exif, quality=95, subsampling=0)
    expected = upscaler(turned)
    assert expected.shape == (240, 160, 3)
    assert differ(upscale(page, turned)[..., :3], expected)[1] < 0.5

    cat.putalpha(
        Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 20)[:, None].repeat(60, axis=1))
    )
    cat.save(hidden)
    expected, result = upscaler(hidden), upscale(page, hidden)
    assert differ(result[..., 3], expected[..., 3])[1] < 2
    seen = (expected[..., 3] == 255) & (result[..., 3] == 255)
    assert seen.mean() > 0.4
    # What is hidden is filled otherwise here, and what is seen depends on it a little.
    assert differ(result[seen], expected[seen])[1] < 2


def test_without_its_headers_it_runs_on_one_thread(page, url, upscaler, photo):
    page.send("Network.setBypassServiceWorker", bypass=True)
    try:
        open_page(page, url)
        assert not page.run("crossOriginIsolated")
        assert "on 1 thread." in page.run("document.body.innerText")
        assert differ(upscale(page, photo)[..., :3], upscaler(photo))[0] <= 1
    finally:
        page.send("Network.setBypassServiceWorker", bypass=False)


def test_what_can_not_be_is_one_sentence(page, tmp_path):
    bad = tmp_path / "a.png"
    bad.write_bytes(b"no photo")
    page.choose_file("#file", bad)
    sentence = "a.png is no picture that this browser can read: take a JPEG, PNG or WebP."
    page.wait_for(f"document.querySelector('#error').innerText == '{sentence}'")
    wide = tmp_path / "wide.png"
    Image.new("RGB", (5000, 2)).save(wide)
    page.choose_file("#file", wide)
    sentence = "this browser can't hold a result of 20000 × 8: take a smaller photo"
    page.wait_for(f'document.querySelector("#error").innerText.includes("{sentence}")')
    assert page.run("document.querySelector('#start').disabled")


def test_it_can_be_cancelled_and_used_again_by_keys_alone(page, tmp_path):
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.open(PHOTOS / "coffee.png").save(large)
    Image.open(PHOTOS / "coffee.png").crop((0, 0, 30, 20)).save(small)
    choose(page, large)

    def tab_to(name):
        for _ in range(20):
            page.press("Tab")
            if page.run("document.activeElement.id || document.activeElement.type") == name:
                return
        raise AssertionError(name)

    tab_to("file")
    tab_to("start")
    page.press("Enter")
    page.wait_for("document.querySelector('#left').innerText.startsWith('Tile 1 of ')")
    tab_to("cancel")
    page.press("Enter")
    page.wait_for(status_starts("Ready"))
    assert page.run("document.querySelector('#working').hidden")
    assert upscale(page, small).shape == (80, 120, 4)
    tab_to("range")
    page.press("ArrowLeft")
    assert page.run("document.activeElement.ariaValueText") == "49% before"


def test_it_fits_a_phone(page):
    page.resize(360, 800)
    assert page.run("document.documentElement.scrollWidth") <= 360
