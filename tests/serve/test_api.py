"""Photos over HTTP: the bytes that the command writes, and a sentence for what is refused."""

import base64
import io
import threading
import time
from typing import Any

import httpx
import pytest
from photos import draw_photo, photo
from PIL import Image
from serving import serving
from typer.testing import CliRunner

from upsr_jax import cli
from upsr_jax.files.write_photo import FORMATS
from upsr_jax.serve.api import MEDIA_TYPES, result_name
from upsr_jax.serve.jobs import Order

TOKEN = "open sesame"


def encoded(pixels, format="png", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


PHOTO = encoded(draw_photo(1, 40, 50))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "own"


@pytest.fixture(scope="module")
def client(desk, folder):
    folder.mkdir()
    with serving(desk, folder) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


def post(client, data: Any = PHOTO, name="a.png", headers=None, **options):
    return client.post("/upscale", files={"image": (name, data)}, data=options, headers=headers)


def as_the_command_writes(model, folder, data, *options):
    folder.mkdir()
    source, out = folder / "in.png", folder / "out.png"
    source.write_bytes(data)
    arguments = ["upscale", source, "--out", out, "--model", model, "--tile", 64, *options]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return out.read_bytes()


def test_an_answer_is_what_the_command_writes(client, model, tmp_path):
    answer = post(client, name="C:\\my photos\\ä.b.png")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].endswith("filename*=UTF-8''%C3%A4.b.png")
    asked = {"seed": "3", "fidelity": "0.5"}
    told = post(client, headers={"Accept": "application/json"}, **asked).json()
    options = ("--seed", 3, "--fidelity", 0.5)
    written = as_the_command_writes(model, tmp_path / "own", PHOTO, *options)
    assert base64.b64decode(told["image"]) == written != answer.content
    assert (told["width"], told["height"], told["format"]) == (200, 160, "png")
    assert told["warnings"] == [] and told["uncertainty"] is None and '"seed": 3' in told["note"]


def test_options_of_size_format_and_uncertainty(client):
    asked = {"scale": "2.5", "format": "webp", "uncertainty": "true"}
    told = post(client, headers={"Accept": "application/json"}, **asked).json()
    for name, format in (("image", "WEBP"), ("uncertainty", "PNG")):
        with Image.open(io.BytesIO(base64.b64decode(told[name]))) as image:
            assert (image.size, image.format) == ((125, 100), format)


def test_every_format_has_a_media_type():
    assert set(FORMATS) <= set(MEDIA_TYPES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": b"no photo"}, "image: not a whole JPEG"),
        ({"data": PHOTO[:900]}, "image: damaged or cut short"),
        ({"scale": "17"}, "scale is 17, but must lie in 1..16"),
        ({"scale": "much"}, "scale: "),
        ({"format": "gif"}, "no format 'gif'"),
        ({"fidelity": "2"}, "fidelity is 2.0, but must lie in 0..1"),
        ({"steps": "1000"}, "choose 1 to"),
        ({"seed": "-1"}, "seed is -1"),
        ({"colour": "red"}, "colour: "),
    ],
)
def test_what_cannot_be_is_one_sentence(client, options, words):
    answer = post(client, **options)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(words) or words in answer.json()["detail"]
    assert "\n" not in answer.text and "Traceback" not in answer.text


def test_what_is_too_large_is_refused_before_it_is_decoded(client, monkeypatch):
    monkeypatch.setattr("upsr_jax.upscale.photo.read_photo", None)  # so it would fail
    for data in (photo(100, 100), photo(70, 72)):  # of 30,000 bytes; of 5,040 pixels
        answer = post(client, encoded(data))
        assert answer.status_code == 413, answer.text
        assert "send a smaller" in answer.json()["detail"]
    answer = post(client, scale="16", data=encoded(draw_photo(0, 60, 80)))
    assert answer.status_code == 413 and "a smaller scale" in answer.json()["detail"]
    chunks = (b"x" * 10_000 for _ in range(100))  # whose length is not told
    answer = client.post("/upscale", content=chunks, headers={"Content-Type": "image/png"})
    assert answer.status_code in (413, 422)


def test_one_too_many_is_told_when_to_come_again(client, desk, monkeypatch):
    began, go_on = threading.Semaphore(0), threading.Event()

    def wait(self, *args, **options):
        began.release()
        assert go_on.wait(60)
        raise ValueError("not today")

    monkeypatch.setattr("upsr_jax.serve.jobs.upscale_photo", wait)
    monkeypatch.setattr(desk.room, "pixels", 10**9)
    jobs = [desk.take(Order(PHOTO)) for _ in range(desk.at_once + 2)]
    for _ in range(desk.at_once):
        assert began.acquire(timeout=60)
    monkeypatch.setattr(desk, "rates", [1e-3])
    answer = post(client)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) == -(-len(jobs) * 64 * 64 // 1000)
    assert "upsr_jobs_waiting 2.0" in client.get("/metrics").text
    go_on.set()
    for job in jobs:
        assert "not today" in str(job.result.exception(60))


def test_who_leaves_ends_the_job(client, desk, monkeypatch):
    states = []

    def last(upscaler, *args, on_progress, **options):
        states.append("began")
        while True:
            time.sleep(0.02)
            on_progress(1, 100)

    monkeypatch.setattr("upsr_jax.serve.jobs.upscale_photo", last)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/upscale", files={"image": PHOTO}, timeout=1)
    assert states == ["began"]
    until = time.monotonic() + 30
    while desk.jobs:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_job_that_lasts_too_long_is_ended(client, desk, monkeypatch):
    def last(upscaler, *args, on_progress, **options):
        while True:
            time.sleep(0.02)
            on_progress(1, 100)

    monkeypatch.setattr("upsr_jax.serve.jobs.upscale_photo", last)
    monkeypatch.setattr(desk, "limits", type(desk.limits)(seconds=0.2))
    monkeypatch.setattr(desk, "rates", [])  # or it would be refused before it begins
    answer = post(client)
    assert answer.status_code == 413 and "0.2 seconds" in answer.json()["detail"]


def test_automatic1111s_route(client, model, tmp_path):
    def ask(**options):
        body = {"image": base64.b64encode(PHOTO).decode(), "upscaler_1": "R-ESRGAN 4x+"}
        return client.post("/sdapi/v1/extra-single-image", json=body | options)

    told = ask(upscaling_resize=4).json()
    assert (
        told["html_info"] == ""
        and base64.b64decode(told["image"]) == post(client, scale="4").content
    )
    url = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
    for options, size in [
        ({"image": url}, (100, 80)),  # twice, as there
        ({"resize_mode": 1, "upscaling_resize_w": 75, "upscaling_resize_h": 60}, (75, 60)),
        (
            {"resize_mode": 1, "upscaling_resize_h": 90, "upscaling_resize_w": 60}
            | {"upscaling_crop": False},
            (112, 90),
        ),
    ]:
        with Image.open(io.BytesIO(base64.b64decode(ask(**options).json()["image"]))) as image:
            assert image.size == size
    for options in (
        {"image": "no base64"},
        {"gfpgan_visibility": 1},
        {"resize_mode": 1},
        {"upscaling_resize": 40},
    ):
        answer = ask(**options)
        assert answer.status_code == 422 and answer.json()["detail"]


def test_others_come_in_with_the_token_alone(desk, tmp_path):
    with serving(desk, tmp_path, TOKEN) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/healthz").json()["status"] == "ok"
        for path in ("/", "/config", "/metrics", "/docs", "/openapi.json", "/gradio_api/info"):
            answer = client.get(path)
            assert answer.status_code == 401 and "Basic" in answer.headers["WWW-Authenticate"]
        assert post(client).status_code == 401
        wrong = {"Authorization": f"Bearer {TOKEN}x"}
        assert post(client, headers=wrong).status_code == 401
        assert post(client, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert client.get("/", auth=("anyone", TOKEN)).status_code == 200
        assert client.get("/", auth=("anyone", "other")).status_code == 401


def test_other_sites_and_other_names_are_refused(client):
    assert post(client, headers={"Origin": "http://example.com"}).status_code == 403
    assert client.get("/healthz", headers={"Host": "example.com"}).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert post(client, headers={"Origin": own}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file={folder}/../secret.txt",
        "/gradio_api/file={folder}/link.txt",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:9/",
        "/gradio_api/proxy=http://127.0.0.1:9/",
        "/static/../../../../../../etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc/passwd",
        "/assets/%2e%2e/%2e%2e/index.html",
        "/custom_component/a/b/c/d",
        "/monitoring",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/result/{folder}",
        "/result/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_file_of_the_machine_can_be_read(client, folder, path):
    (folder.parent / "secret.txt").write_text("secret")
    (folder / "link.txt").unlink(missing_ok=True)
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    answer = client.get(path.format(folder=folder))
    assert answer.status_code in (403, 404), path
    assert "root:" not in answer.text and "secret" not in answer.text


def test_uploads_of_the_page_get_no_clients_name(client, folder):
    answer = client.post(
        "/gradio_api/upload",
        files={
            "files": ("../../a name;.PNG", PHOTO),
        },
    )
    [path] = answer.json()
    assert path.startswith(str(folder / "uploads")) and path.endswith("/photo.png")
    for _ in range(40):
        client.post("/gradio_api/upload", files={"files": ("b.exe", PHOTO)})
    assert len(list((folder / "uploads").iterdir())) == 32
    assert {each.name for each in folder.rglob("photo*")} == {"photo"}


def test_the_interfaces_page_loads_nothing(client):
    text = client.get("/docs").text
    assert "strip_location" in text and "/sdapi/v1/extra-single-image" in text
    assert "http://" not in text and "https://" not in text and "src=" not in text
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/upscale", "/sdapi/v1/extra-single-image", "/healthz", "/metrics"}


def test_names_of_results():
    assert result_name("a/b.c.jpg", "png") == "b.c.png"
    assert result_name(None, "webp") == "image.webp"
