"""The page, made with gradio; it works without a network."""

import asyncio
import os
import secrets
import shutil
from collections import OrderedDict
from concurrent.futures import CancelledError
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

# Before gradio is imported: it would tell its makers of each start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import cv2
import gradio as gr
import numpy as np
from fastapi import FastAPI, Response, UploadFile
from gradio.themes import Default
from PIL import Image
from starlette.concurrency import run_in_threadpool

from upsr_jax.files.find import READ_SUFFIXES
from upsr_jax.files.photos import ImageError, read_rgb
from upsr_jax.files.write_photo import FORMATS
from upsr_jax.serve.api import MEDIA_TYPES, Options, attachment, make_order, result_name
from upsr_jax.serve.jobs import Desk, Job, Refusal
from upsr_jax.upscale.photo import Result
from upsr_jax.upscale.tiles import SCALE

ASSETS = Path(__file__).parents[1] / "assets"
EXAMPLES = ("china.jpg", "chelsea.png", "flower.jpg")
SHOWN = 4096  # pixels a side of what the page shows; what it gives to download is whole
# Of open pages, and of their photos and results; beyond that the oldest are forgotten.
KEPT_PAGES, KEPT_BYTES = 200, 2**30
UPLOADS, KEPT_UPLOADS = "uploads", 32  # photos on disk until their page has been answered
PROGRESS = gr.Progress()
LOOK = 0.2  # seconds between two looks at a job
FOLDERS = ("assets/", "static/", "svelte/", "result/", "gradio_api/heartbeat/")
PATHS = (
    *("", "config", "theme.css", "favicon.ico", "manifest.json", "robots.txt"),
    *("gradio_api/upload", "gradio_api/queue/join", "gradio_api/queue/data", "gradio_api/info"),
    *("gradio_api/run/predict", "gradio_api/upload_progress"),
    *("gradio_api/startup-events", "gradio_api/cancel", "gradio_api/reset", "gradio_api/app_id"),
)
FILE = "/gradio_api/file="


@dataclass
class Session:
    """What an open page holds: a photo, the job that runs, its result and pictures of that."""

    folder: Path
    upload: Path | None = None
    photo: bytes = b""
    name: str = ""
    job: Job | None = None
    result_id: str = ""
    result: Result | None = None

    def forget_upload(self) -> None:
        """Delete the file that the photo came in."""
        if self.upload and self.upload.parent.parent.name == UPLOADS:  # and no example
            shutil.rmtree(self.upload.parent, ignore_errors=True)
        self.upload = None

    def size(self) -> int:
        return len(self.photo) + (len(self.result.data) if self.result else 0)


class Sessions:
    """The open pages, the one used last at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.all: OrderedDict[str, Session] = OrderedDict()

    def get(self, request: gr.Request) -> Session:
        """Find a page's session, or begin it."""
        key = str(request.session_hash)
        if key not in self.all:
            self.all[key] = Session(self.folder / secrets.token_hex(16))
        self.all.move_to_end(key)
        while len(self.all) > KEPT_PAGES or (len(self.all) > 1 and self.size() > KEPT_BYTES):
            self.forget(next(iter(self.all)))
        return self.all[key]

    def size(self) -> int:
        return sum(session.size() for session in list(self.all.values()))

    def find_result(self, result_id: str) -> tuple[Session, Result] | None:
        for session in list(self.all.values()):
            if session.result and secrets.compare_digest(session.result_id, result_id):
                return session, session.result
        return None

    def forget(self, key: str) -> None:
        """Forget a page and all that it holds, and end its job."""
        session = self.all.pop(key, None)
        if session:
            if session.job:
                session.job.stop()
            session.forget_upload()
            shutil.rmtree(session.folder, ignore_errors=True)


def is_page_path(path: str, folder: Path) -> bool:
    """Tell whether the page needs a path; gradio has many more, some for files of any kind."""
    if path.startswith(FILE):
        name = os.path.realpath(path.removeprefix(FILE))
        return name.startswith(os.path.join(os.path.realpath(folder), ""))
    return path[1:] in PATHS or (path[1:].startswith(FOLDERS) and ".." not in path)


def add_page(api: FastAPI, desk: Desk, folder: Path) -> FastAPI:
    """Add the page to an app; what it keeps on disk lies in `folder`, which is its own."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    sessions = Sessions(folder)

    # In place of gradio's own, which names files as the client does and keeps them.
    @api.post("/gradio_api/upload", include_in_schema=False)
    async def upload(files: list[UploadFile]) -> list[str]:
        paths, uploads = [], folder / UPLOADS
        uploads.mkdir(exist_ok=True)
        for file in files:
            suffix = os.path.splitext(file.filename or "")[1].lower()
            known = suffix if suffix in READ_SUFFIXES else ""
            path = uploads / secrets.token_hex(16) / f"photo{known}"
            path.parent.mkdir()
            path.write_bytes(await file.read())
            paths.append(str(path))
        for path in sorted(uploads.iterdir(), key=os.path.getmtime)[:-KEPT_UPLOADS]:
            shutil.rmtree(path, ignore_errors=True)  # that no page asked for
        return paths

    # The page asks for it while a photo comes in, which from nearby is at once.
    @api.get("/gradio_api/upload_progress", include_in_schema=False)
    async def upload_progress() -> Response:
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @api.get("/result/{result_id}", include_in_schema=False)
    async def result(result_id: str) -> Response:
        found = sessions.find_result(result_id)
        if found is None:
            raise Refusal(404, "this result is no longer here; upscale the photo again.")
        session, result = found
        headers = {
            "Content-Disposition": attachment(result_name(session.name, result.format)),
            "Cache-Control": "no-store",
        }
        return Response(result.data, media_type=MEDIA_TYPES[result.format], headers=headers)

    async def mount() -> FastAPI:
        return gr.mount_gradio_app(
            api,
            make_page(desk, sessions),
            "/",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            show_error=True,
            theme=Default(
                font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
            ),
            css_paths=ASSETS / "serve" / "page.css",
            js=(ASSETS / "serve" / "page.js").read_text(),
        )

    # Outside of an event loop, gradio makes several and never closes them.
    return asyncio.run(mount())


class Parts(NamedTuple):
    """What is on the page; `options` in the order that `options_of` takes them."""

    photo: gr.Image
    options: list[Any]
    about: gr.Markdown
    start: gr.Button
    cancel: gr.Button
    download: gr.HTML
    slider: gr.ImageSlider
    uncertainty: gr.Image


def make_page(desk: Desk, sessions: Sessions) -> gr.Blocks:
    """Lay out the page and tie it to the desk."""
    with gr.Blocks(title="upsr", analytics_enabled=False) as page:
        gr.Markdown("# Upscale a photo\nIt stays on this server, only until you close the page.")
        with gr.Row():
            with gr.Column(min_width=280):
                photo = gr.Image(
                    label="Photo: drop, paste or choose",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=280,
                    elem_id="photo",
                )
                gr.Examples(
                    [[str(ASSETS / "photos" / name)] for name in EXAMPLES],
                    [photo],
                    label="Or one of these",
                    cache_examples=False,
                    api_visibility="private",
                )
                options = lay_out_options(desk)
                about = gr.Markdown(elem_id="about")
                with gr.Row():
                    start = gr.Button("Upscale", variant="primary", min_width=100, elem_id="start")
                    cancel = gr.Button("Cancel", interactive=False, min_width=100, elem_id="cancel")
            with gr.Column(scale=2, min_width=280):
                download = gr.HTML(elem_id="download")
                slider = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=700,
                    elem_id="slider",
                )
                uncertainty = gr.Image(
                    label="Uncertainty: bright where the model was least sure",
                    interactive=False,
                    buttons=["fullscreen"],
                    elem_id="uncertainty",
                )
        parts = Parts(photo, options, about, start, cancel, download, slider, uncertainty)
        listen(page, parts, desk, sessions)
    return page


def lay_out_options(desk: Desk) -> list[Any]:
    """Lay out what can be chosen; what changes nothing in this model's results is not shown."""
    config = desk.config
    has_denoiser = config.network == "denoiser"
    takes_steps = has_denoiser and config.sampler["method"] != "one_step"
    scale = gr.Slider(1, 16, SCALE, step=0.5, label="Scale")
    fidelity = gr.Slider(
        *(0, 1, 0),
        step=0.25,
        label="Fidelity",
        info="0 is sharpest, 1 most faithful",
        visible=has_denoiser,
    )
    format = gr.Dropdown(
        ["auto", *FORMATS],
        value="auto",
        label="Format",
        filterable=False,
        info="auto is the photo's own, or png where that can't hold the result",
    )
    if not takes_steps:
        return [scale, fidelity, format]
    most = config.diffusion["steps"]
    steps = gr.Slider(1, most, config.sampler["steps"], step=1, label="Steps")
    seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="another one, another draw")
    return [scale, fidelity, format, steps, seed]


def listen(page: gr.Blocks, parts: Parts, desk: Desk, sessions: Sessions) -> None:
    """Tie what happens on the page to the desk's jobs."""
    options, buttons = parts.options, [parts.start, parts.cancel]

    def take_photo(request: gr.Request, given: Any, *values: Any) -> Any:
        session = sessions.get(request)
        session.forget_upload()
        session.photo, session.name = b"", ""
        if given is not None and not is_page_path(f"{FILE}{given['path']}", sessions.folder):
            raise gr.Error("no photo of this page.")
        if given is not None:
            session.upload = Path(given["path"])
            session.photo = session.upload.read_bytes()
            session.name = given.get("orig_name") or ""
        return describe(request, *values)

    def describe(request: gr.Request, *values: Any) -> str:
        session = sessions.get(request)
        if not session.photo:
            return ""
        try:
            tall, wide, pixels = desk.measure(make_order(session.photo, options_of(*values)))
        except Refusal as refusal:
            return escape(str(refusal))
        seconds = desk.waiting_seconds() + desk.expect_seconds(pixels)
        return f"It becomes {wide} × {tall} pixels, in about {show_seconds(seconds)}."

    async def run(request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any) -> Any:
        session = sessions.get(request)
        try:
            if not session.photo:
                raise Refusal(422, "choose a photo first.")
            order = make_order(session.photo, options_of(*values))
            session.job = job = await run_in_threadpool(desk.take, order)
            while not job.result.done():
                progress(job.share, desc="Upscaling" if job.share else "Starting")
                await asyncio.sleep(LOOK)
            result = job.result.result()
        except (CancelledError, asyncio.CancelledError):
            return "Cancelled.", None, None
        except Refusal as refusal:
            return f"<p role=alert>{escape(str(refusal))}</p>", None, None
        finally:
            session.job = None
            session.forget_upload()
        session.result, session.result_id = result, secrets.token_hex(16)
        pictures = await run_in_threadpool(save_pictures, session)
        return link(session), *pictures

    def stop(request: gr.Request) -> None:
        job = sessions.get(request).job
        if job:
            job.stop()

    def leave(request: gr.Request) -> None:
        sessions.forget(str(request.session_hash))

    quiet: Any = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    parts.photo.change(take_photo, [parts.photo, *options], parts.about, preprocess=False, **quiet)
    for option in options:
        option.change(describe, options, parts.about, **quiet)
    running = parts.start.click(set_running, None, buttons, **quiet).then(
        run,
        options,
        [parts.download, parts.slider, parts.uncertainty],
        concurrency_limit=None,
        api_visibility="private",
        show_progress_on=parts.slider,
    )
    running.then(set_idle, None, buttons, **quiet)
    parts.cancel.click(stop, None, None, **quiet)
    page.unload(leave)


def set_running() -> tuple[Any, Any]:
    return gr.Button(interactive=False), gr.Button(interactive=True)


def set_idle() -> tuple[Any, Any]:
    return gr.Button(interactive=True), gr.Button(interactive=False)


def options_of(scale: float | int, fidelity: float | int, format: str, *sampling: int) -> Options:
    """Name what was chosen; as the command does, it says nothing of the model's own scale."""
    steps, seed = sampling or (None, 0)
    return Options(
        scale=None if scale == SCALE else scale,
        fidelity=fidelity,
        format=format,
        steps=steps,
        seed=seed,
        uncertainty=True,
    )


def show_seconds(seconds: float) -> str:
    """Write a time in words, as roughly as it is known."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes"


def link(session: Session) -> str:
    """Write the link that saves a session's result."""
    result = session.result
    assert result is not None
    name = escape(result_name(session.name, result.format), quote=True)
    size = f"{result.width} × {result.height}, {len(result.data) / 1e6:.1f} MB"
    warnings = "".join(f"<p>{escape(warning)}</p>" for warning in result.warnings)
    return (
        f'<a href="result/{session.result_id}" download="{name}">Download {name}</a> ({size})'
        f"{warnings}"
    )


def save_pictures(session: Session) -> tuple[tuple[str, str] | None, str | None]:
    """Save what the page shows of a result: before and after, and the uncertainty.

    Of results too large for Pillow and browsers it shows nothing.
    """
    result = session.result
    assert result is not None
    shutil.rmtree(session.folder, ignore_errors=True)
    session.folder.mkdir()
    try:
        after, uncertainty = read_rgb(result.data), read_rgb(result.uncertainty or b"")
    except ImageError:
        return None, None
    ratio = min(1.0, SHOWN / max(after.shape))
    size = round(after.shape[1] * ratio), round(after.shape[0] * ratio)
    pictures = {"before": read_rgb(session.photo), "after": after, "uncertainty": uncertainty}
    paths = []
    for name, pixels in pictures.items():
        how = cv2.INTER_CUBIC if pixels.shape[1] < size[0] else cv2.INTER_AREA
        path = session.folder / f"{name}.jpg"
        if pixels.dtype == np.uint16:
            pixels = np.round(pixels / 257).astype(np.uint8)
        Image.fromarray(cv2.resize(pixels, size, interpolation=how)).save(path, quality=92)
        paths.append(str(path))
    return (paths[0], paths[1]), paths[2]
