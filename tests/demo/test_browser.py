"""The page in headless Chromium, served by the command itself: `pytest -m browser` (Debian's package `chromium`)."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from globalvit.build import open_checkpoint

pytestmark = pytest.mark.browser
# Milliseconds that a step of the page may take on a busy machine.
PATIENCE = 120_000
# Seconds until the page is up, likewise.
START = 300


class Elsewhere:
    """A proxy that every other host would be asked through; it only counts."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.asked = 0
        threading.Thread(target=self._count, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def _count(self):
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.asked += 1


class Server:
    """`globalvit demo` in a process of its own, its temporary files in `folder`."""

    def __init__(self, folder, words):
        self.folder, self.elsewhere = folder, Elsewhere()
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.elsewhere.address)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "globalvit", "demo", "--port", "0", "--device", "cpu", *words],
            cwd=folder,
            env=os.environ | proxies | {"no_proxy": "127.0.0.1", "TMPDIR": str(folder), "HF_HOME": str(folder / "hf")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = ""
        self.said = []
        self.is_up = threading.Event()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def wait(self):
        assert self.is_up.wait(START), "".join(self.said)
        assert self.address, "".join(self.said)

    def _listen(self):
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"serving the page at (\S+)", line):
                self.address = found[1]
                self.is_up.set()
        self.is_up.set()

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(60)
        self.listener.join(60)
        self.process.stderr.close()
        self.elsewhere.socket.close()
        return status


@pytest.fixture(scope="module")
def server(given, tmp_path_factory):
    words = ["--checkpoint", str(given.classify), "--checkpoint", str(given.detect), "--max-upload-mb", "1"]
    started = Server(tmp_path_factory.mktemp("served"), words)
    try:
        started.wait()
        yield started
    finally:
        if started.process.poll() is None:
            started.interrupt()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "Chromium is not installed; on Debian: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, server, request):
    """The page, arrived at; afterwards, what it asked for and complained of is looked at."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    asked, complaints = [], []
    opened.on("request", lambda one: asked.append(one.url))
    opened.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    opened.on("pageerror", lambda one: complaints.append(str(one)))
    opened.goto(server.address)
    opened.wait_for_selector("#examples img")
    yield opened
    context.close()
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {
        urlsplit(server.address).netloc
    }
    assert not complaints
    assert server.elsewhere.asked == 0
    assert "Traceback" not in "".join(server.said), "".join(server.said)


def send(page, path):
    page.set_input_files("#upload input[type=file]", path)


def choose(page, dropdown, name):
    page.click(f"#{dropdown} input")
    page.get_by_role("option", name=re.compile(name)).click()


def source(page):
    return page.get_attribute("#map img", "src")


def changed(page, before):
    """Wait until the map is another; return it."""
    page.wait_for_function("before => document.querySelector('#map img')?.src !== before", arg=before)
    return source(page)


def move(page, slider, value):
    """Type a value beside a slider, which works as dragging it does."""
    page.locator(f"#{slider} input[type=number]").fill(str(value))
    page.locator(f"#{slider} input[type=number]").press("Enter")


@pytest.fixture
def image(photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    return path


@pytest.mark.parametrize(
    "page",
    [
        {"viewport": {"width": 1280, "height": 900}},
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True, "is_mobile": True},
    ],
    indirect=True,
    ids=["desktop", "phone"],
)
def test_an_uploaded_image_gets_the_answer_of_the_model(page, given, photo, image, tmp_path, server):
    send(page, image)
    page.wait_for_selector("#answer .bars")
    (expected,) = open_checkpoint(given.classify).predict(photo)
    assert page.locator("#answer h2").inner_text() == expected["names"][0]
    assert page.locator("#answer .percent").all_inner_texts() == [f"{100 * one:.1f} %" for one in expected["scores"]]
    assert page.get_by_alt_text("Your image, photo.png").is_visible()
    page.wait_for_selector("#map img")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    # Nothing sticks out sideways, and what was sent is gone.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not [path for path in server.folder.rglob("photo*") if path.is_file()]


def test_sliders_and_clicks_change_the_map(page, image, tmp_path):
    send(page, image)
    first = changed(page, None)
    page.get_by_label("Local attention").click()
    local = changed(page, first)
    choose(page, "layer", "stage 0, block 0")
    coarse = changed(page, local)
    page.locator("#map img").click(position={"x": 200, "y": 60})
    placed = changed(page, coarse)
    x, y = map(int, re.search(r"Marked: (\d+), (\d+)", page.locator("#note").inner_text()).groups())
    # The keyboard moves the place as well.
    page.locator("#left input[type=range]").press("ArrowRight")
    changed(page, placed)
    assert f"Marked: {x + 1}, {y};" in page.locator("#note").inner_text()
    page.screenshot(path=tmp_path / "map.png", full_page=True)
    move(page, "left", 1)
    page.wait_for_selector("[data-testid=toast-body]")
    assert "was cropped away before the model saw the image" in page.locator("[data-testid=toast-body]").inner_text()


def test_an_example_is_taken_with_the_keyboard(page):
    page.locator("#examples button").nth(2).press("Enter")
    page.wait_for_selector("#answer .bars")
    assert page.locator("#image img").get_attribute("alt").startswith("Your image, shapes/val/")


def test_the_threshold_of_a_detector_moves_what_is_shown(page, image, tmp_path):
    choose(page, "model", "detect")
    page.wait_for_function("document.querySelector('#about').innerText.includes('finds objects')")
    send(page, image)
    page.wait_for_selector("#answer .found")
    page.screenshot(path=tmp_path / "objects.png", full_page=True)
    move(page, "threshold", 0.95)
    page.wait_for_function("document.querySelector('#answer .found').innerText === 'Found: nothing'")


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("script.png", b"<svg onload=alert(1)>", "script.png cannot be read as an image: it is none of JPEG"),
        ("<img src=x onerror=alert(1)>.png", b"", "img src=x onerror=alert(1).png cannot be read as an image"),
        ("big.png", b"x" * 2_000_000, 'exceed the maximum allowed size of 1.0 Mb: "big.png"'),
    ],
)
def test_what_is_no_image_is_a_line_on_the_page(page, image, name, data, text, tmp_path):
    page.set_input_files("#upload input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})
    page.wait_for_selector("[data-testid=toast-body]")
    assert text in page.locator("[data-testid=toast-body]").inner_text()
    page.screenshot(path=tmp_path / "refused.png")
    send(page, image)
    page.wait_for_selector("#answer .bars")


def test_the_server_itself_refuses_what_is_too_large_or_from_elsewhere(server):
    for headers, status in (({"Content-Length": "2000000"}, 413), ({"Host": "evil.example"}, 421)):
        with closing(HTTPConnection(urlsplit(server.address).netloc, timeout=60)) as connection:
            connection.request("POST", "/gradio_api/upload", headers=headers)
            with closing(connection.getresponse()) as answer:
                assert answer.status == status


def test_a_training_shows_how_far_it_is_and_can_be_stopped(page, tmp_path):
    page.get_by_text("Train a small model here").click()
    page.click("#lesson-digits")
    page.wait_for_selector("#progress progress")
    page.screenshot(path=tmp_path / "training.png")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#progress').innerText.includes('training failed')")


# Last: it ends the server.
def test_ctrl_c_ends_it_and_leaves_nothing(server):
    assert server.interrupt() == 0
    assert "Traceback" not in "".join(server.said)
    assert not list(server.folder.glob("globalvit-demo-*"))
