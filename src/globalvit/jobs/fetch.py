"""Downloads of http(s) URLs given by the user, with limits on bytes, redirects and total time."""

import http.client
import socket
import string
import time
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, OpenerDirector, Request, build_opener

from globalvit import __version__

DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 60.0
# Seconds without data, while connecting and between any two parts of the response.
SILENCE_SECONDS = 15.0
MOST_REDIRECTS = 5
LONGEST_ADDRESS = 8000
REDIRECTS = (301, 302, 303, 307, 308)
MEBIBYTE = 2**20


class DownloadError(OSError):
    """A URL could not be downloaded; the message names it and the reason."""


def download(address: str) -> bytes:
    """Download an http(s) URL: at most 64 MiB, 5 redirects, and a minute from the DNS lookup to the last byte.

    Raises:
        DownloadError: no response, too large, or too slow; the message names the URL.
    """
    job = _Download(address)
    # A thread, because nothing else ends a slow name server or an answer whose headers arrive one byte at a time.
    thread = Thread(target=job.run, name="globalvit-download", daemon=True)
    thread.start()
    thread.join(max(0.0, DOWNLOAD_SECONDS))
    if thread.is_alive():
        job.stop()
        raise DownloadError(
            f"{address} did not arrive within {DOWNLOAD_SECONDS:g} s; download it yourself and give the file"
        )
    if job.error is not None:
        raise job.error
    return bytes(job.data)


def check_address(address: str) -> None:
    """Reject a URL that is too long, or not http or https.

    Raises:
        ValueError: the URL is too long or has another scheme.
    """
    if len(address) > LONGEST_ADDRESS:
        raise ValueError(f"expected a URL of at most {LONGEST_ADDRESS} characters, got {len(address)}: {address[:80]}…")
    scheme = urlsplit(address).scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"expected an http or https URL, got {address}")


class _Download:
    """One download, which runs in a separate thread.

    Attributes:
        data: what has arrived.
        error: why it failed, after `run`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.data = bytearray()
        self.error: DownloadError | None = None
        self._is_stopped = False
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        """Download; store any failure in `error`."""
        try:
            self._fetch()
        except DownloadError as error:
            self.error = error
        except Exception as error:
            # A hostile server raises nearly anything in http.client: OSError, ValueError, HTTPException, …
            address = self.address if len(self.address) <= LONGEST_ADDRESS else "the address"
            self.error = DownloadError(f"{address} cannot be downloaded: {_reason(error)}")
            self.error.__cause__ = error

    def stop(self) -> None:
        """Close the connection; `run` then ends at once, or as soon as it has connected."""
        self._is_stopped = True
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def connect(self, kind: type[http.client.HTTPConnection], host: str, **options: Any) -> http.client.HTTPConnection:
        """Create a connection that `stop` can close."""
        if self._is_stopped:
            raise DownloadError(f"{self.address} was abandoned")
        self._connection = kind(host, **options)
        return self._connection

    def _fetch(self) -> None:
        stop = time.monotonic() + DOWNLOAD_SECONDS
        with self._open() as answer:
            size = answer.headers.get("Content-Length", "")
            if size.isdecimal() and int(size) > DOWNLOAD_BYTES:
                raise self._too_large()
            while part := answer.read(2**16):
                self.data += part
                if len(self.data) > DOWNLOAD_BYTES:
                    raise self._too_large()
                if self._is_stopped or time.monotonic() > stop:
                    return
            if size.isdecimal() and len(self.data) < int(size):
                raise DownloadError(
                    f"{self.address} ended early: got {len(self.data)} of {size} bytes; try again, or download it "
                    "yourself and give the file"
                )

    def _open(self) -> Any:
        """Open the URL or its redirect target; bodies of redirects are not read."""
        check_address(self.address)
        address, opener = _ascii(self.address), _opener(self)
        for _ in range(MOST_REDIRECTS + 1):
            try:
                request = Request(address, headers={"User-Agent": f"globalvit/{__version__}"})
                return opener.open(request, timeout=SILENCE_SECONDS)
            except HTTPError as error:
                with error:
                    target = error.headers.get("Location", "")
                    if error.code not in REDIRECTS or not target:
                        raise
                    # http.client decodes headers as Latin-1.
                    address = quote(urljoin(address, target), encoding="iso-8859-1", safe=string.punctuation)
                check_address(address)
        raise DownloadError(f"{self.address} redirects more than {MOST_REDIRECTS} times")

    def _too_large(self) -> DownloadError:
        return DownloadError(
            f"{self.address} is larger than {DOWNLOAD_BYTES // MEBIBYTE} MiB; download and shrink it first"
        )


class _NoRedirects(HTTPRedirectHandler):
    """Handler that raises redirects as errors, which `_Download` follows."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> None:
        """See `HTTPRedirectHandler`."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(job: _Download) -> OpenerDirector:
    """Return an opener that uses the system's proxies and certificates, and connections that `job` can close."""

    class Plain(HTTPHandler):
        def http_open(self, req: Request) -> Any:
            return self.do_open(lambda host, **options: job.connect(http.client.HTTPConnection, host, **options), req)

    class Secure(HTTPSHandler):
        def https_open(self, req: Request) -> Any:
            return self.do_open(lambda host, **options: job.connect(http.client.HTTPSConnection, host, **options), req)

    return build_opener(Plain(), Secure(), _NoRedirects())


def _ascii(address: str) -> str:
    """Return the URL as it is sent: quoted as browsers do, with international host names encoded.

    Raises:
        DownloadError: the URL has control characters, or no host.
    """
    if any(not letter.isprintable() and not letter.isspace() for letter in address) or "\n" in address:
        raise DownloadError(f"{address!r} has control characters; give a URL without them")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        host = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise DownloadError(f"{address} is not a valid URL: {_reason(error)}") from error
    if not host:
        raise DownloadError(f"{address} names no host; expected http://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise DownloadError(f"{parts.scheme}://…@{host} contains a user name or password; download the image yourself")
    netloc = host if port is None else f"{host}:{port}"
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, netloc, path, query, ""))


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP Error {error.code}{' without a redirect target' if error.code in REDIRECTS else ''}"
    text = " ".join(str(getattr(error, "reason", None) or error).split())
    if isinstance(error, http.client.HTTPException):
        return f"the server's answer is not valid HTTP ({type(error).__name__}{f': {text}' if text else ''})"
    return text or type(error).__name__
