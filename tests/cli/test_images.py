"""Images named on the command line: files, folders, addresses, and what cannot be read."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath

import pytest
from PIL import Image

from globalvit.cli import images
from globalvit.cli.images import DownloadError, download, find_images


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
    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://example.org/x.png")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/none.png" else 200)
        self.end_headers()
        self.wfile.write(b"\0" * 2000 if self.path == "/big.png" else png())

    def log_message(self, *values):
        pass


@pytest.fixture
def server():
    """The address of a web server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_folders_are_searched_in_the_order_of_code_points(folder):
    found = find_images([str(folder)])
    assert [image.inside for image in found] == [PurePosixPath("b/a.jpg"), PurePosixPath("z.PNG")]
    assert [image.read().size for image in found] == [(4, 4), (4, 4)]


def test_a_file_is_taken_whatever_its_ending(folder):
    assert [image.name for image in find_images([str(folder / "notes.txt")])] == [str(folder / "notes.txt")]


def test_an_address_is_downloaded(server):
    (image,) = find_images([f"{server}/a%20cat.png?size=5"])
    assert image.inside == PurePosixPath("a cat.png")
    assert image.read().size == (5, 3)


@pytest.mark.parametrize(
    ("word", "error", "text"),
    [
        ("nothing.jpg", FileNotFoundError, r"nothing\.jpg does not exist; give images, folders or http"),
        ("ftp://host/x.png", ValueError, r"ftp://host/x\.png is a ftp address; only http and https"),
        ("file:///etc/x.png", ValueError, r"is a file address; only http and https"),
    ],
)
def test_what_is_not_there_is_named_before_anything_runs(word, error, text):
    with pytest.raises(error, match=text):
        find_images([word])


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images; looked for \.avif, \.bmp"):
        find_images([str(tmp_path)])


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/none.png", r"/none\.png cannot be downloaded: HTTP Error 404"),
        ("/away", r"/away cannot be downloaded: ftp://example\.org/x\.png is a ftp address"),
        ("/big.png", r"/big\.png is larger than 0 MiB; download and shrink it first"),
    ],
)
def test_a_download_that_fails_names_its_address(server, monkeypatch, path, text):
    monkeypatch.setattr(images, "DOWNLOAD_BYTES", 1000)
    with pytest.raises(DownloadError, match=text):
        download(server + path)


def test_a_slow_download_is_given_up(server, monkeypatch):
    monkeypatch.setattr(images, "DOWNLOAD_SECONDS", -1)
    with pytest.raises(DownloadError, match=r"did not arrive within -1 s"):
        download(f"{server}/a.png")
