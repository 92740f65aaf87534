"""The HTTP interface: photos in, pictures out; the page is in `page`."""

import asyncio
import base64
import binascii
import importlib.metadata
import os
import time
from concurrent.futures import CancelledError
from typing import Annotated, Any, Literal
from urllib.parse import quote

import jinja2
from fastapi import FastAPI, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from upsr_jax.serve.guard import refuse
from upsr_jax.serve.jobs import Desk, Job, Order, Refusal, measure_photo
from upsr_jax.upscale.photo import Result
from upsr_jax.upscale.restore import Sampling
from upsr_jax.upscale.sizes import Wanted

MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "jxl": "image/jxl",
}
POLL = 0.5  # seconds between two looks at whether who asked is still there
PICTURE = {"schema": {"type": "string", "format": "binary"}}
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong."},
    413: {"description": "Too many bytes or pixels, or it would take too long."},
    422: {"description": "Not a photo that can be read, or an option with such a value."},
    429: {"description": "Too many are waiting; `Retry-After` says how many seconds to wait."},
    503: {"description": "The server is stopping."},
}


class Options(BaseModel):
    """The command's options, by their names."""

    model_config = ConfigDict(extra="forbid")

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None
    format: str = "auto"
    quality: int | None = None
    strip_metadata: bool = False
    strip_location: bool = False
    seed: int = 0
    steps: int | None = None
    sampler: str | None = None
    min_noise: float | None = None
    fidelity: float = 0.0
    uncertainty: bool = False


class PhotoForm(Options):
    """A photo's file, and options."""

    image: UploadFile


class ExtraSingleImage(BaseModel):
    """What AUTOMATIC1111's route of this name takes, as far as it means something here."""

    model_config = ConfigDict(extra="ignore")

    image: str
    resize_mode: Literal[0, 1] = 0
    upscaling_resize: float = 2.0
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    extras_upscaler_2_visibility: float = 0.0
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0


def make_order(photo: bytes, options: Options) -> Order:
    """Make an order; raise Refusal for values that no photo and no model take."""
    given = options.model_dump()
    try:
        return Order(
            photo,
            Wanted(**{name: given[name] for name in Wanted.__dataclass_fields__}),
            options.seed,
            Sampling(options.steps, options.sampler, options.min_noise, options.fidelity),
            options.uncertainty,
        )
    except ValueError as error:
        raise Refusal(422, error) from error


async def finish(job: Job, request: Request) -> Result:
    """Wait for a job's result, and end the job if who asked for it goes; raise Refusal."""
    result = asyncio.wrap_future(job.result)
    while not (await asyncio.wait([result], timeout=POLL))[0]:
        if await request.is_disconnected():
            job.stop()
    try:
        return await result
    except (CancelledError, asyncio.CancelledError) as error:
        raise Refusal(503, "the server is stopping; ask again in a minute.", 60) from error


def result_name(name: str | None, format: str) -> str:
    """Name a result as the photo, which any system's path may stand before."""
    stem, _ = os.path.splitext((name or "").replace("\\", "/").rpartition("/")[2])
    return f"{stem or 'image'}.{format}"


def attachment(name: str) -> str:
    """Write the header that has a browser save a file by this name."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def make_api(desk: Desk, metrics: CollectorRegistry) -> FastAPI:
    """Make the app that answers all but the page."""
    version = importlib.metadata.version("upsr_jax")
    # FastAPI's own pages load their scripts from elsewhere.
    api = FastAPI(title="upsr", version=version, docs_url=None, redoc_url=None)

    @api.exception_handler(Refusal)
    async def _refuse(_: Request, refusal: Refusal) -> JSONResponse:
        return refuse(refusal)

    @api.exception_handler(RequestValidationError)
    async def _explain(_: Request, error: RequestValidationError) -> JSONResponse:
        return refuse(Refusal(422, sentence_of(error)))

    @api.post(
        "/upscale",
        responses={
            200: {
                "description": "The picture; or, with `Accept: application/json`, an object with "
                "it in base64, as `image`, and what was done.",
                "content": {**{kind: PICTURE for kind in MEDIA_TYPES.values()}},
            },
            **REFUSALS,
        },
    )
    async def upscale(
        request: Request, form: Annotated[PhotoForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Upscale a photo."""
        start = time.monotonic()
        photo, name = await form.image.read(), form.image.filename
        await form.image.close()
        job = await run_in_threadpool(desk.take, make_order(photo, form))
        result = await finish(job, request)
        if "application/json" not in request.headers.get("accept", ""):
            headers = {"Content-Disposition": attachment(result_name(name, result.format))}
            return Response(result.data, media_type=MEDIA_TYPES[result.format], headers=headers)
        about = {
            "image": encode(result.data),
            "name": result_name(name, result.format),
            "format": result.format,
            "width": result.width,
            "height": result.height,
            "note": result.note,
            "warnings": result.warnings,
            "uncertainty": result.uncertainty and encode(result.uncertainty),
            "seconds": round(time.monotonic() - start, 3),
        }
        return JSONResponse(about)

    @api.post("/sdapi/v1/extra-single-image", responses=REFUSALS)
    async def extra_single_image(request: Request, body: ExtraSingleImage) -> JSONResponse:
        """Upscale a photo in the words of AUTOMATIC1111's web interface."""
        photo = decode(body.image)
        order = await run_in_threadpool(order_of, photo, body)
        job = await run_in_threadpool(desk.take, order)
        result = await finish(job, request)
        return JSONResponse({"html_info": "", "image": encode(result.data)})

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Say that the server takes photos; 503 once it is stopping."""
        if desk.is_closed:
            raise Refusal(503, "the server is stopping.")
        return {"status": "ok", "version": version}

    @api.get("/metrics", response_class=Response)
    async def get_metrics() -> Response:
        """Count and time, in the text format of Prometheus."""
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return render_docs(api.openapi())

    return api


def order_of(photo: bytes, body: ExtraSingleImage) -> Order:
    """Turn AUTOMATIC1111's words into ours; raise Refusal for what this server doesn't do."""
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if getattr(body, name) > 0:
            raise Refusal(422, f"{name} is above 0, but here is no such model; leave it out.")
    if body.resize_mode == 0:
        return make_order(photo, Options(format="png", scale=body.upscaling_resize))
    height, width = measure_photo(photo)
    tall, wide = body.upscaling_resize_h, body.upscaling_resize_w
    if body.upscaling_crop and tall * width != wide * height:
        raise Refusal(
            422,
            f"image: {width}x{height} would have to be cropped for {wide}x{tall}, which is not "
            "done here; send upscaling_crop false to have it cover that size.",
        )
    if wide * height >= tall * width:
        return make_order(photo, Options(format="png", width=wide))
    return make_order(photo, Options(format="png", height=tall))


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decode(text: str) -> bytes:
    """Decode base64, also after the start of a data URL; raise Refusal."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Refusal(422, f"image: not base64 ({error}); encode the file's bytes.") from error


def sentence_of(error: RequestValidationError) -> str:
    """Say in one sentence what is wrong with a request."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return f"{name or 'request'}: {first['msg'][:1].lower()}{first['msg'][1:]}."


def render_docs(schema: dict[str, Any]) -> str:
    """Write the page that shows the interface; it loads nothing."""
    loader = jinja2.PackageLoader("upsr_jax", "assets/serve")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("docs.html").render(schema=schema)
