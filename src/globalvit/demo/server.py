"""Server of the page: one address, no requests to other hosts, and uploads deleted at the end."""

import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from globalvit.demo.leftovers import own_folder
from globalvit.demo.quick import Training
from globalvit.demo.shelf import Choice, Shelf

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Content security policy without access to other hosts. Gradio's own scripts are inline.
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
# Bytes of a request in addition to the uploaded file.
ENVELOPE = 64 * 1024
TOO_LARGE = "the file is too large; see --max-upload-mb"
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(:\d+)?")
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Guard:
    """Middleware that rejects oversized and cross-site requests, and sets the content security policy.

    Otherwise another site could reach a server on this machine through DNS rebinding, or send it files. `hosts` are the
    allowed host names; None allows all.
    """

    def __init__(self, app: App, hosts: tuple[str, ...] | None, most_bytes: int) -> None:
        self.app, self.hosts, self.most_bytes = app, hosts, most_bytes

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        bytes_left, has_begun, is_over = self.most_bytes + ENVELOPE, False, False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if is_over:
                return
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        async def refuse(status: int, text: str) -> None:
            await answer({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
            await answer({"type": "http.response.body", "body": text.encode()})

        async def take() -> Message:
            """Pass on incoming data up to the byte limit, regardless of the declared length."""
            nonlocal bytes_left, is_over
            message = {"type": "http.disconnect"} if is_over else await receive()
            bytes_left -= len(message.get("body", b""))
            if bytes_left < 0 and not is_over:
                if not has_begun:
                    await refuse(413, TOO_LARGE)
                message = {"type": "http.disconnect"}
            is_over |= message["type"] == "http.disconnect"
            return message

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if (refusal := self.refusal(headers, scope.get("method", "GET"))) is not None:
            await refuse(*refusal)
            return
        try:
            await self.app(scope, take, answer)
        except Exception:
            # A visitor who disconnects during an upload is not an error of the page.
            if not is_over:
                raise

    def refusal(self, headers: dict[bytes, str], method: str = "GET") -> tuple[int, str] | None:
        """Return status and text of a rejection, or None to pass the request on."""
        found = HOST.fullmatch(headers.get(b"host", ""))
        host = found["name"].strip("[]").lower() if found else ""
        if self.hosts is not None and host not in self.hosts:
            return 421, "this page is only available on this machine"
        if method not in ("GET", "HEAD", "OPTIONS") and not _is_same_origin(headers):
            return 403, "requests from other sites are not allowed"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self.most_bytes + ENVELOPE:
            return 413, TOO_LARGE
        return None


def _is_same_origin(headers: dict[bytes, str]) -> bool:
    """Return whether a request comes from the page itself, or from a program that is not a browser."""
    if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    # A proxy may use another host name; other sites cannot set this header without a CORS preflight request.
    own = (headers.get(b"host", ""), headers.get(b"x-forwarded-host", ""))
    return origin is None or origin.partition("://")[2].lower() in {name.lower() for name in own if name}


def serve(
    choices: list[Choice], *, host: str, port: int, device: str, most_bytes: int, lesson: str | None = None
) -> None:
    """Serve the page until Ctrl-C or a terminating signal; uploads are always deleted.

    Raises:
        OSError: the port is in use, or the address does not belong to this machine.
        SystemExit: a signal ended the page; the status follows the shell convention.
    """
    with listening(host, port) as listener, own_folder() as folder:
        if threading.current_thread() is threading.main_thread():
            # Exit with an exception: a signal would end the process at once, and leave uploads and a training behind.
            # The running server installs its own handler, and raises the signal again after shutting down.
            signal.signal(signal.SIGTERM, _leave)
            if hasattr(signal, "SIGHUP"):
                signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
        (folder / "uploads").mkdir()
        # Gradio reads these at import: no telemetry, and its files go into our folder.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        training = Training(folder, device)
        try:
            if lesson is not None:
                training.begin(lesson)
            _run(listener, Shelf(choices, device), training, folder / "uploads", host, most_bytes)
        finally:
            # First, since `docker stop` kills after 10 s.
            shutil.rmtree(folder / "uploads", ignore_errors=True)
            # A checkpoint would be deleted with the folder anyway.
            training.stop(patience=2)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address, or raise OSError with the remedy."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port}: {error.strerror}; give another --port (0 picks any free port) or "
            "another --host"
        ) from error


def _run(listener: socket.socket, models: Shelf, training: Training, uploads: Path, host: str, most_bytes: int) -> None:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from globalvit.demo import page

    # A value out of a slider's range is shown on the page; Gradio would also print a traceback.
    setattr(gr.Error, "print_exception", property(lambda _: False, lambda *_: None))  # noqa: B010 (an attribute of instances)
    blocks = page.Page(models, training, uploads, most_bytes).blocks.queue(default_concurrency_limit=1)
    options = {"ssr_mode": False, "enable_monitoring": False, "mcp_server": False, "run_history": False}
    looks = {"theme": page.theme(), "css": page.CSS, "js": page.PASTE, "footer_links": []}
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None), blocks, path="/", max_file_size=most_bytes, show_error=False, **options, **looks
    )
    hosts = (*LOOPBACK, host) if host in LOOPBACK else None
    if hosts is None:
        logger.warning("%s is not a loopback address: anyone who can reach this machine can use the page", host)
    port = listener.getsockname()[1]
    logger.info("serving the page at http://%s:%d (press Ctrl-C to stop)", f"[{host}]" if ":" in host else host, port)
    config = uvicorn.Config(Guard(app, hosts, most_bytes), log_level="warning", timeout_graceful_shutdown=2)
    # Ctrl-C is the normal way to stop; the server has already shut down when it arrives here.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])
