"""Serving the page: one address, no other host involved, everything that was sent gone at the end."""

import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from globalvit.demo.leftovers import own_folder
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
TOO_LARGE = "the file is too large for this page"
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(:\d+)?")
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Guard:
    """Stands before the app: refuses what is too large or from elsewhere, and tells browsers what is allowed.

    A page elsewhere could otherwise reach a server on this machine under a name of its own, or send it files.

    Args:
        app: what answers.
        hosts: names under which it may be asked; None allows all.
        most_bytes: of an upload.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None, most_bytes: int) -> None:
        self.app, self.hosts, self.most_bytes = app, hosts, most_bytes

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        exchange = _Exchange(receive, send, self.most_bytes + ENVELOPE)
        refusal = self.refusal(headers, scope.get("method", "GET"))
        if refusal is not None:
            await exchange.refuse(*refusal)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            # A visitor who leaves while sending a file is not an error of the page.
            if not exchange.is_over:
                raise

    def refusal(self, headers: dict[bytes, str], method: str = "GET") -> tuple[int, str] | None:
        """Status and text of what is answered in the app's place; None hands the request on."""
        host = headers.get(b"host", "")
        if self.hosts is not None and _host(host) not in self.hosts:
            return 421, "this page is only for this machine"
        if method not in ("GET", "HEAD", "OPTIONS") and not _is_same_origin(headers):
            return 403, "requests from other sites are refused"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self.most_bytes + ENVELOPE:
            return 413, TOO_LARGE
        return None


class _Exchange:
    """One request and its answer, which gets our headers.

    Attributes:
        is_over: whether the client has left, or was refused in the middle.
    """

    def __init__(self, receive: Any, send: Any, most_bytes: int) -> None:
        self._receive, self._send, self._bytes_left = receive, send, most_bytes
        self._has_begun = False
        self.is_over = False

    async def receive(self) -> Message:
        """Hand on what comes in, up to a number of bytes, whatever the request said of its length."""
        message = {"type": "http.disconnect"} if self.is_over else await self._receive()
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left < 0 and not self.is_over:
            if not self._has_begun:
                await self.refuse(413, TOO_LARGE)
            message = {"type": "http.disconnect"}
        self.is_over |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if self.is_over:
            return
        if message["type"] == "http.response.start":
            self._has_begun = True
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await self._send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Answer in the app's place."""
        await self.send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
        await self.send({"type": "http.response.body", "body": text.encode()})


def _host(value: str) -> str:
    """The name or address in a Host header, without port and brackets; empty where it is not one."""
    found = HOST.fullmatch(value)
    return found["name"].strip("[]").lower() if found else ""


def _is_same_origin(headers: dict[bytes, str]) -> bool:
    """Whether a request comes from the page itself, or from a program that is not a browser."""
    if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    # A proxy in between may ask under a name of its own; no page elsewhere can set this header without being asked.
    own = (headers.get(b"host", ""), headers.get(b"x-forwarded-host", ""))
    return origin is None or origin.partition("://")[2].lower() in {name.lower() for name in own if name}


def serve(
    choices: list[Choice], *, host: str, port: int, device: str, most_bytes: int, lesson: str | None = None
) -> None:
    """Show the page until Ctrl-C, or a signal that ends the process; uploads are deleted whatever ends it.

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
        SystemExit: a signal ended it, with the status that shells give it.
    """
    with _ended_by_signals(), listening(host, port) as listener, own_folder() as folder:
        _prepare_gradio(folder / "uploads")
        training = Training(folder, device)
        try:
            if lesson is not None:
                training.begin(lesson)
            _run(listener, Shelf(choices, device), training, folder / "uploads", host, most_bytes)
        finally:
            # First of all, since `docker stop` kills after 10 s.
            shutil.rmtree(folder / "uploads", ignore_errors=True)
            # A checkpoint would be deleted with the rest.
            training.stop(patience=2)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Leave by an exception where a signal would end the process at once, and leave uploads and a training behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    # While the server runs, it has a handler of its own, and raises the signal again when it has shut down.
    handlers = {"SIGTERM": leave, "SIGHUP": lambda *_: signal.raise_signal(signal.SIGTERM)}
    known = {getattr(signal, name): handler for name, handler in handlers.items() if hasattr(signal, name)}
    former = {number: signal.signal(number, handler) for number, handler in known.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


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

    # A value out of a slider's range is a visitor's mistake, which the page shows; Gradio prints a traceback as well.
    setattr(gr.Error, "print_exception", property(lambda _: False, lambda *_: None))  # noqa: B010 (an attribute of instances)
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
