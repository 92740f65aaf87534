"""What stands before all routes: who may ask, from where, for what, and how much."""

import asyncio
import base64
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from upsr_jax.serve.jobs import Refusal

App = Callable[..., Awaitable[None]]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEARTBEAT = "/gradio_api/heartbeat/"  # an answer that lasts as long as a page is open
OPEN = ("/healthz",)  # for whoever watches the process
# A page may load nothing from elsewhere, send nothing there, and be shown in no other page.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)


def guard(
    app: App,
    *,
    token: str | None,
    max_bytes: int,
    is_known_fn: Callable[[str], bool],
    check_open_fn: Callable[[str], None],
    answered_fn: Callable[[str, int, float], None],
    is_closed_fn: Callable[[], bool],
) -> App:
    """Wrap an ASGI app so that only what is safe reaches it.

    With a `token`, each request must bear it, as a bearer's token or, as browsers ask for it, as
    a password; without one, it must be addressed to this machine. Paths that are not
    `is_known_fn`'s are not found. A body has at most `max_bytes`, or a third more as base64 has;
    before one is read, `check_open_fn(path)` may raise Refusal. `answered_fn` is told the path,
    the status and the seconds of each answer. Once `is_closed_fn()`, open pages are let go.
    """
    most = max_bytes * 4 // 3 + 2**16  # the other fields are short

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        start, path, headers = time.monotonic(), scope["path"], Headers(scope=scope)

        async def send_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered_fn(path, message["status"], time.monotonic() - start)
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        try:
            check_headers(path, headers, token)
            length = headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > most:
                raise Refusal(413, too_large(max_bytes))
            if not is_known_fn(path):
                raise Refusal(404, "no such page.")
            check_open_fn(path)
        except Refusal as refusal:
            await read_out(receive, most)
            await refuse(refusal)(scope, receive, send_on)
            return
        received = 0

        async def receive_on() -> Any:
            nonlocal received
            if path.startswith(HEARTBEAT):
                return await receive_until(receive, is_closed_fn)
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, too_large(max_bytes))
            return message

        await app(scope, receive_on, send_on)

    return guarded


async def read_out(receive: Any, most: int) -> None:
    """Read a body to its end, or so many bytes of it: who still sends may miss the answer."""
    received = 0
    while received <= most:
        message = await receive()
        received += len(message.get("body", b""))
        if not message.get("more_body"):
            return


async def receive_until(receive: Any, is_closed_fn: Callable[[], bool]) -> Any:
    """Receive a message, or that the connection has ended once the server is closed."""
    message = asyncio.ensure_future(receive())
    while not is_closed_fn():
        if (await asyncio.wait([message], timeout=1))[0]:
            return message.result()
    message.cancel()
    return {"type": "http.disconnect"}


def check_headers(path: str, headers: Mapping[str, str], token: str | None) -> None:
    """Raise Refusal for a request that may not be made."""
    if token is None:
        name = urlsplit(f"//{headers.get('host', '')}").hostname
        if name not in LOOPBACK:  # a page elsewhere whose name was made to lead here
            raise Refusal(403, "ask by the name localhost or 127.0.0.1.")
    elif path not in OPEN and not bears(headers.get("authorization", ""), token):
        raise Refusal(401, "give the token, as `Authorization: Bearer TOKEN` or as the password.")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Refusal(403, "pages of other sites may not ask.")


def too_large(most: int) -> str:
    return f"image: more than {most:,} bytes; send a smaller file."


def bears(authorization: str, token: str) -> bool:
    """Tell whether a header bears the token, in a time that tells nothing about it."""
    kind, _, given = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            given = base64.b64decode(given).decode().partition(":")[2]
        except ValueError:
            return False
    elif kind.lower() != "bearer":
        return False
    return secrets.compare_digest(given.strip().encode(), token.encode())


def refuse(refusal: Refusal) -> JSONResponse:
    """Answer with a refusal, as JSON."""
    headers = {} if refusal.retry is None else {"Retry-After": str(refusal.retry)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="upsr", charset="UTF-8"'
    return JSONResponse({"detail": str(refusal)}, refusal.status, headers)
