"""The page in a real headless Chromium, which reaches nothing but the server."""

import json
import time
from urllib.parse import urlsplit

import pytest
from browser import start_browser
from photos import draw_photo, save
from serving import serving
from typer.testing import CliRunner

from upsr_jax import cli

DIVIDER = "document.querySelector('#slider [data-testid=slider]')"
LINK = "document.querySelector('#download a')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def url(desk, folder):
    with serving(desk, folder) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with start_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    browser.open(url)
    browser.wait_for("document.querySelector('#photo input[type=file]') && true")
    browser.wait_for("document.querySelectorAll('#start, #cancel').length == 2")
    return browser


def click(page, selector):
    page.run(f"document.querySelector('{selector}').click()")


def upload(page, path):
    page.choose_file("#photo input[type=file]", path)
    page.wait_for("document.querySelector('#about').innerText.includes('pixels')")


def left_of(element):
    return f"(({element}).getBoundingClientRect().left)"


def test_a_photo_goes_in_and_what_the_command_writes_comes_out(page, folder, model, tmp_path):
    photo = save(tmp_path / "my photo.png", draw_photo(2, 45, 60))
    upload(page, photo)
    assert "240 × 180 pixels" in page.run("document.querySelector('#about').innerText")
    click(page, "#start")
    link = page.wait_for(f"{LINK} && [{LINK}.download, {LINK}.href]")
    assert link[0] == "my photo.png"
    page.wait_for("document.querySelectorAll('#slider img').length == 2")
    page.run("Promise.all([...document.images].map((image) => image.decode())).then(() => 0)")

    page.run(f"{DIVIDER}.scrollIntoView({{ block: 'center' }})")
    left, top = page.run(
        f"(() => {{ const b = {DIVIDER}.getBoundingClientRect();"
        " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
    )
    page.mouse("mousePressed", left, top)
    page.mouse("mouseMoved", left + 80, top)
    page.mouse("mouseReleased", left + 80, top, buttons=0)
    page.wait_for(f"Math.abs({left_of(DIVIDER)} - {page.run(left_of(DIVIDER))}) < 1")
    moved = page.run(left_of(DIVIDER))
    assert page.run(f"{DIVIDER}.ariaValueNow") != "50"
    page.run(f"{DIVIDER}.focus()")
    page.press("ArrowLeft")
    page.wait_for(f"{left_of(DIVIDER)} < {moved} - 2")
    page.press("Home")
    page.wait_for(f"{DIVIDER}.ariaValueNow == '0'")

    got = page.download(f"{LINK}.click()")
    assert got.name == "my photo.png"
    out = tmp_path / "out" / "my photo.png"
    command = ["upscale", photo, "--out", out, "--model", model, "--tile", 64]
    result = CliRunner().invoke(cli.app, [str(each) for each in command])
    assert result.exit_code == 0, result.output
    assert got.read_bytes() == out.read_bytes()

    hosts = {
        urlsplit(each["request"]["url"]) for each in page.messages("Network.requestWillBeSent")
    }
    assert {host.hostname for host in hosts if host.scheme not in ("data", "blob")} == {"127.0.0.1"}
    assert page.messages("Log.entryAdded", "Runtime.exceptionThrown") == []
    assert not list(folder.rglob("uploads/*/*"))  # only what came out is still there


def test_what_is_no_photo_is_said_in_a_sentence(page, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no photo")
    page.choose_file("#photo input[type=file]", path)
    page.wait_for("document.querySelector('#about').innerText.startsWith('image: not a whole')")
    click(page, "#start")
    page.wait_for("document.querySelector('#download').innerText.startsWith('image: not a whole')")


def test_a_job_can_be_cancelled(page, desk, tmp_path, monkeypatch):
    def last(upscaler, *args, on_progress, **options):
        while True:
            time.sleep(0.02)
            on_progress(1, 4)

    monkeypatch.setattr("upsr_jax.serve.jobs.upscale_photo", last)
    upload(page, save(tmp_path / "a.png", draw_photo(2, 45, 60)))
    click(page, "#start")
    page.wait_for("document.querySelector('#slider').innerText.includes('25')")
    click(page, "#cancel")
    page.wait_for("document.querySelector('#download').innerText.startsWith('Cancelled')")
    assert not desk.jobs


def test_keys_alone_do_it(page):
    """An example is chosen and asked for, which is refused, as it is too large here."""
    page.run("document.querySelector('#photo').scrollIntoView()")

    def tab_to(condition):
        for _ in range(60):
            page.press("Tab")
            if page.run(f"((each) => {condition})(document.activeElement)"):
                return
        raise AssertionError(condition)

    tab_to("each.className.includes('gallery-item')")
    page.press("Enter")
    page.wait_for("document.querySelector('#about').innerText.includes('smaller')")
    tab_to("each.id == 'start'")
    page.press("Enter")
    page.wait_for("document.querySelector('#download').innerText.includes('smaller')")


def test_page_fits_a_phone_and_shows_what_the_model_heeds(page):
    page.resize(360, 800)
    assert page.run("document.documentElement.scrollWidth") <= 360
    text = page.run("document.body.innerText")
    assert "Scale" in text and "Fidelity" in text and "Steps" in text and "Seed" in text


def test_a_paste_is_a_photo(page, tmp_path):
    save(tmp_path / "a.png", draw_photo(2, 45, 60))
    data = list((tmp_path / "a.png").read_bytes())
    page.run(
        f"""(() => {{
          const data = new Uint8Array({json.dumps(data)}), clipboardData = new DataTransfer();
          clipboardData.items.add(new File([data], "a.png", {{ type: "image/png" }}));
          const options = {{ clipboardData, bubbles: true, cancelable: true }};
          document.body.dispatchEvent(new ClipboardEvent("paste", options));
        }})()"""
    )
    page.wait_for("document.querySelector('#about').innerText.includes('240 × 180')")
