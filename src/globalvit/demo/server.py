"""Serving the page: one address, no other host involved, everything that was sent gone at the end."""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from globalvit.demo.quick import Training
from globalvit.demo.shelf import Choice, Shelf

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What a browser may do for this page: nothing that reaches another host. Gradio's own scripts stand within the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
# Of a request around the uploaded file itself.
ENVELOPE = 64 * 1024
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Guard:
    """Stands before the app: refuses what is too large or asks for another host, and tells browsers what is allowed.

    A page elsewhere could otherwise reach a server on this machine under a name of its own.

    Args:
        app: what answers.
        hosts: names under which it may be asked; None allows all.
        most_bytes: of an upload.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None, most_bytes: int) -> None:
        self.app, self.hosts, self.most_bytes = app, hosts, most_bytes

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        refusal = self.refusal({name.lower(): value.decode("latin-1") for name, value in scope["headers"]})
        if refusal is None:
            await self.app(scope, receive, with_headers)
            return
        status, text = refusal
        await with_headers({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
        await with_headers({"type": "http.response.body", "body": text.encode()})

    def refusal(self, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """Status and text of what is answered in the app's place; None hands the request on."""
        if self.hosts is not None and _host(headers.get(b"host", "")) not in self.hosts:
            return 421, "this page is only for this machine"
        length = headers.get(b"content-length", "0")
        if not length.isdigit() or int(length) > self.most_bytes + ENVELOPE:
            return 413, "the file is too large for this page"
        return None


def _host(value: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    return (value.partition("]")[0].lstrip("[") if value.startswith("[") else value.partition(":")[0]).lower()


def serve(
    choices: list[Choice], *, host: str, port: int, device: str, most_bytes: int, lesson: str | None = None
) -> None:
    """Show the page until Ctrl-C.

    Args:
        choices: models on offer.
        host: address to listen at.
        port: the same; 0 takes any that is free.
        device: where models compute.
        most_bytes: of an upload.
        lesson: name of a training to begin with.

    Raises:
        OSError: the port is taken, or the address is not of this machine.
        ImportError: Gradio is not installed.
    """
    with listening(host, port) as listener, TemporaryDirectory(prefix="globalvit-demo-") as name:
        folder = Path(name)
        _prepare_gradio(folder / "uploads")
        training = Training(folder, device)
        try:
            if lesson is not None:
                training.begin(lesson)
            _run(listener, Shelf(choices, device), training, folder / "uploads", host, most_bytes)
        finally:
            training.stop()


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        OSError: the port is taken, or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(
            f"cannot serve at {host}, port {port}: {error.strerror}; give another --port (0 takes any that is free) or "
            "another --host"
        ) from error


def _prepare_gradio(uploads: Path) -> None:
    """Switch off its reports home, and have its files in a folder of ours; it reads this when it is imported."""
    uploads.mkdir()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def _run(listener: socket.socket, models: Shelf, training: Training, uploads: Path, host: str, most_bytes: int) -> None:
    import uvicorn

    app = build_app(models, training, uploads, most_bytes)
    hosts = (*LOOPBACK, host) if host in LOOPBACK else None
    port = listener.getsockname()[1]
    config = uvicorn.Config(Guard(app, hosts, most_bytes), log_level="warning", timeout_graceful_shutdown=2)
    if hosts is None:
        logger.warning("%s is not loopback: everybody who can reach this machine can use the page", host)
    logger.info("the page is at http://%s:%d (Ctrl-C ends it)", f"[{host}]" if ":" in host else host, port)
    # Ctrl-C is how the page ends; the server has shut down by the time that it is passed on.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


def build_app(models: Shelf, training: Training, uploads: Path, most_bytes: int) -> Any:
    """The page as an ASGI app."""
    import gradio as gr
    from fastapi import FastAPI

    from globalvit.demo.page import Page, read, theme

    page = Page(models, training, uploads, most_bytes)
    page.blocks.queue(default_concurrency_limit=1)
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.blocks,
        path="/",
        theme=theme(),
        css=read("page.css"),
        footer_links=[],
        run_history=False,
        max_file_size=most_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        show_error=False,
    )
