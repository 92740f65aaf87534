"""Run the page and the HTTP interface as one process, and end it without losing what runs."""

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from upsr_jax.serve.api import make_api
from upsr_jax.serve.guard import LOOPBACK, App, guard
from upsr_jax.serve.jobs import Desk, Limits
from upsr_jax.serve.metrics import make_metrics
from upsr_jax.serve.page import add_page, is_page_path
from upsr_jax.upscale.restore import Sampling
from upsr_jax.upscale.upscaler import Upscaler

GRACE = 20  # seconds for what runs when the process is told to end


def check_access(host: str, token: str | None) -> None:
    """Raise ValueError if others than this machine's users could come in without a token."""
    if host not in LOOPBACK and not token:
        raise ValueError(
            f"--host {host} lets others in: give a --token, or set UPSR_TOKEN, that they must know"
        )


def make_app(desk: Desk, folder: Path, token: str | None = None) -> App:
    """Make the ASGI app of a desk; what it keeps on disk lies in `folder`, which is its own."""
    registry, count = make_metrics(desk)
    api = make_api(desk, registry)
    paths = {getattr(route, "path", "") for route in api.routes}
    busy = {"/upscale", "/sdapi/v1/extra-single-image"}
    return guard(
        add_page(api, desk, folder),
        token=token,
        max_bytes=desk.limits.bytes,
        is_known_fn=lambda path: path in paths or is_page_path(path, folder),
        check_open_fn=lambda path: desk.check_open() if path in busy else None,
        answered_fn=count,
        is_closed_fn=lambda: desk.is_closed,
    )


def serve(
    load_fn: Callable[[Sampling], Upscaler],
    host: str,
    port: int,
    token: str | None,
    limits: Limits,
    say_fn: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT, and then until what runs is done, or half a minute.

    Raises what `load_fn` and `check_access` do, and ValueError if it can't listen there.
    """
    check_access(host, token)
    with (
        listen(host, port) as listener,
        tempfile.TemporaryDirectory(prefix="upsr_serve_") as folder,
    ):
        desk = Desk(load_fn, limits)
        app = make_app(desk, Path(folder).resolve(), token)
        desk.warm_up()
        config = uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False
        )
        name = f"[{host}]" if ":" in host else host
        say_fn(f"serving on http://{name}:{listener.getsockname()[1]}")
        try:
            Server(config, desk).run([listener])
        finally:
            desk.stop()


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address; raise ValueError if that can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"{host}:{port}: {error.strerror or error}; choose another --port or --host."
        ) from error


class Server(uvicorn.Server):
    """A server that takes no more jobs once it is told to end, and that then ends well."""

    def __init__(self, config: uvicorn.Config, desk: Desk):
        super().__init__(config)
        self.desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; unlike uvicorn's own, it does not raise the signal again afterwards."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.desk.close()
