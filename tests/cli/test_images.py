"""Images named on the command line: files, folders, addresses, and what cannot be read."""

import io
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import pytest
from PIL import Image

from globalvit.jobs import fetch
from globalvit.jobs.fetch import DownloadError, download
from globalvit.jobs.images import Source, Writer, find_images


@pytest.fixture
def folder(tmp_path):
    """Two images, one in a folder below, and a file that is none."""
    (tmp_path / "b").mkdir()
    for name in ("z.PNG", "b/a.jpg"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def png():
    data = io.BytesIO()
    Image.new("RGB", (5, 3), "blue").save(data, "PNG")
    return data.getvalue()


class Answer(BaseHTTPRequestHandler):
    """Answers by the address: each path is one way in which servers misbehave, or a good image."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path in RAW:
            self.wfile.write(RAW[path])
        elif path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[path])
            self.end_headers()
        elif path in SLOW:
            with suppress(OSError):
                for byte in SLOW[path]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
        else:
            self.send_response(404 if path == "/none.png" else 200)
            self.end_headers()
            self.wfile.write(b"\0" * 2000 if path == "/big.png" else png())

    def log_message(self, *values):
        pass


OK = b"HTTP/1.1 200 OK\r\n"
RAW = {
    "/silly": b"\x00\x01 no http at all\r\n\r\n",
    "/nothing": b"",
    "/many-headers": OK + b"X: y\r\n" * 200 + b"\r\n",
    "/long-header": OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
    "/chunks": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    "/chunk-cut": OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc",
    "/cut": OK + b"Content-Length: 500\r\n\r\nabc",
    "/huge": OK + b"Content-Length: 1000000000000000\r\n\r\nabc",
    "/page": OK + b"\r\n <!DOCTYPE html><html><body>hello</body></html>",
    "/text.png": OK + b"\r\nnot an image",
    "/empty.png": OK + b"Content-Length: 0\r\n\r\n",
    "/no-location": b"HTTP/1.1 302 Found\r\n\r\n",
}
REDIRECTS = {
    "/away": "ftp://example.org/x.png",
    "/file": "file:///etc/passwd",
    "/data": "data:image/png;base64,AAAA",
    "/loop": "/loop",
    "/ping": "/pong",
    "/pong": "/ping",
    "/once": "/a.png",
    "/bad": "http://[::1/x",
}
# Answers that a byte at a time takes much longer than the test allows.
SLOW = {
    "/slow-status": b"HTTP/1.1 200 " + b"O" * 2000,
    "/slow-header": OK + b"X: " + b"y" * 2000,
    "/slow-body": OK + b"\r\n" + b"\x89PNG" * 500,
}


@pytest.fixture
def server():
    """The address of a web server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_folders_are_searched_in_the_order_of_code_points(folder):
    found = find_images([str(folder)]).images
    assert [image.inside for image in found] == [PurePosixPath("b/a.jpg"), PurePosixPath("z.PNG")]
    assert [image.read().size for image in found] == [(4, 4), (4, 4)]


def test_links_to_folders_are_followed_once(folder, caplog):
    (folder / "b" / "up").symlink_to(folder)
    (folder / "c").symlink_to(folder / "b")
    assert [str(image.inside) for image in find_images([str(folder)]).images] == ["b/a.jpg", "z.PNG"]


def test_files_that_are_not_named_as_images_are_counted(folder, caplog):
    with caplog.at_level("INFO"):
        find_images([str(folder)])
    assert f"skipped 1 files without an image extension, such as {folder / 'notes.txt'}" in caplog.text


def test_a_file_is_taken_whatever_its_ending(folder):
    assert [image.name for image in find_images([str(folder / "notes.txt")]).images] == [str(folder / "notes.txt")]


@pytest.mark.parametrize("path", ["/a%20cat.png?size=5", "/a cat.png", "/once", "/caf\u00e9.png"])
def test_an_address_is_downloaded(server, path):
    (image,) = find_images([server + path]).images
    assert image.inside == PurePosixPath({"/once": "once", "/caf\u00e9.png": "caf\u00e9.png"}.get(path, "a cat.png"))
    assert image.read().size == (5, 3)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("nothing.jpg", r"nothing\.jpg does not exist; give images, folders or http"),
        ("", r"expected an image, folder or http\(s\) URL, got an empty name"),
        ("a\0b.png", r"does not exist; give images"),
        ("ftp://host/x.png", r"expected an http or https URL, got ftp://host/x\.png"),
        ("file:///etc/x.png", r"expected an http or https URL, got file:///etc/x\.png"),
        ("/dev/zero", r"/dev/zero is a device, expected a regular file; save the image to a file first"),
        ("http://[::1/x.png", r"Invalid IPv6 URL"),
    ],
)
def test_what_is_not_there_is_named_before_anything_runs(word, text):
    with pytest.raises(ValueError, match=text):
        find_images([word])


def test_one_bad_word_costs_no_other(folder):
    found = find_images(["gone.png", str(folder / "z.PNG"), "ftp://host/x.png"])
    assert [image.name for image in found.images] == [str(folder / "z.PNG")]
    assert [failure.image for failure in found.failures] == ["gone.png", "ftp://host/x.png"]


def test_pipes_are_never_opened(folder, make_pipe):
    make_pipe(folder / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is a pipe \(FIFO\), expected a regular file"):
        find_images([str(folder / "pipe.png")])
    text = "pipe.png is a pipe (FIFO), expected a regular file; save the image to a file first"
    assert find_images([str(folder)]).failures == [(f"{folder}/pipe.png", f"{folder}/{text}")]
    with pytest.raises(OSError, match=r"pipe\.png is a pipe \(FIFO\), expected a regular file"):
        Source(f"{folder}/pipe.png", PurePosixPath("pipe.png")).read()


def test_folders_that_cannot_be_read_are_failures(folder, forbid_reading):
    forbid_reading("b")
    found = find_images([str(folder)])
    assert [str(image.inside) for image in found.images] == ["z.PNG"]
    assert found.failures == [(f"{folder}/b", f"{folder}/b cannot be read; change its permissions")]


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected files ending in \.avif, \.bmp"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/none.png", r"/none\.png cannot be downloaded: HTTP Error 404"),
        ("/away", r"/away cannot be downloaded: expected an http or https URL, got ftp://example\.org/x\.png"),
        ("/file", r"/file cannot be downloaded: expected an http or https URL, got file:///etc/passwd"),
        ("/data", r"/data cannot be downloaded: expected an http or https URL, got data:image/png;base64,AAAA"),
        ("/no-location", r"/no-location cannot be downloaded: HTTP Error 302 without a redirect target"),
        ("/bad", r"/bad cannot be downloaded: Invalid IPv6 URL"),
        ("/loop", r"/loop redirects more than 5 times"),
        ("/ping", r"/ping redirects more than 5 times"),
        ("/big.png", r"/big\.png is larger than 0 MiB; download and shrink it first"),
        ("/huge", r"/huge is larger than 0 MiB"),
        ("/silly", r"/silly cannot be downloaded: the server's answer is not valid HTTP \(BadStatusLine"),
        ("/nothing", r"/nothing cannot be downloaded: .*Remote end closed connection without response"),
        ("/many-headers", r"the server's answer is not valid HTTP \(HTTPException: got more than 100 headers"),
        ("/long-header", r"the server's answer is not valid HTTP \(LineTooLong"),
        ("/chunks", r"the server's answer is not valid HTTP \(IncompleteRead"),
        ("/chunk-cut", r"the server's answer is not valid HTTP \(IncompleteRead"),
        ("/cut", r"/cut ended early: got 3 of 500 bytes; try again, or download it yourself"),
        ("/x\n.png", r"has control characters; give a URL without them"),
        ("/page", r"/page is a web page, not an image; give the URL of the image file itself"),
    ],
)
def test_a_download_that_fails_names_its_address(server, monkeypatch, path, text):
    monkeypatch.setattr(fetch, "DOWNLOAD_BYTES", 1000)
    with pytest.raises(OSError, match=text) as failure:
        Source(server + path, PurePosixPath("x")).read()
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(("path", "text"), [("/text.png", "it is none of JPEG"), ("/empty.png", "the file is empty")])
def test_what_is_not_an_image_is_one_sentence(server, path, text):
    with pytest.raises(ValueError, match=rf"{path} cannot be read as an image: {text}"):
        Source(server + path, PurePosixPath("x")).read()


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://host/" + "x" * 9000, "expected a URL of at most 8000 characters, got 9012: http://host/x"),
        ("http:///x.png", "names no host; expected http://HOST/PATH"),
        ("http://host:99999/x.png", "is not a valid URL: Port out of range 0-65535"),
        ("http://user:secret@host/x.png", "http://…@host contains a user name or password"),
        ("http://" + "a" * 80 + ".org/x.png", "is not a valid URL: .*label"),
        ("http://127.0.0.1:1/x.png", "cannot be downloaded: .*refused"),
    ],
)
def test_addresses_that_are_none_are_one_sentence(address, text):
    with pytest.raises(DownloadError, match=text):
        download(address)


@pytest.mark.parametrize("path", SLOW)
def test_the_time_is_bounded_however_slowly_an_answer_drips(server, monkeypatch, path):
    monkeypatch.setattr(fetch, "DOWNLOAD_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"did not arrive within 0\.3 s; download it yourself and give the file"):
        download(server + path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("inside", "name"),
    [("x" * 300 + ".jpg", "x" * 246 + "-mask.png"), ("\u00e9" * 200 + ".jpg", "\u00e9" * 123 + "-mask.png")],
)
def test_long_names_are_cut_so_that_they_can_be_written(tmp_path, inside, name):
    writer = Writer(tmp_path)
    assert writer.write(Source("x", PurePosixPath(inside)), Image.new("RGB", (1, 1)), "-mask") == str(tmp_path / name)


@pytest.mark.parametrize("path", ["/a%00b.png", "/..", "/%2fetc%2fx.png", "/a%0Ab.png", "/", "/..%2f..%2fx.png"])
def test_names_of_addresses_stay_inside_the_folder(path):
    (image,) = find_images([f"http://host{path}"]).images
    assert len(image.inside.parts) == 1
    assert image.inside.name.isprintable()
    assert image.inside.name not in (".", "..")
