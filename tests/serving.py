"""A server in this process: the real one, but for the signals."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from upsr_jax.serve.jobs import Desk
from upsr_jax.serve.server import make_app


@contextmanager
def serving(desk: Desk, folder: Path, token: str | None = None) -> Iterator[str]:
    """Serve a desk on loopback until the block ends; give the address."""
    config = uvicorn.Config(
        make_app(desk, folder, token),
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=1,  # pages that are open still
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
