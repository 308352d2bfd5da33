"""The running server: what it refuses, what it says in the terminal, and that nothing stays behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection

import pytest

pytestmark = pytest.mark.slow
START, END = 240, 60


class Served:
    """`globalvit demo` in a process of its own, its temporary files in `folder`."""

    def __init__(self, folder, checkpoint):
        self.folder = folder
        words = ["--checkpoint", str(checkpoint), "--port", "0", "--device", "cpu", "--max-upload-mb", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "globalvit", "demo", *words],
            cwd=folder,
            env=os.environ | {"TMPDIR": str(folder), "HF_HOME": str(folder / "hf")},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said, self.port, self.is_up = [], 0, threading.Event()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        assert self.is_up.wait(START), self.text
        assert self.port, self.text

    @property
    def text(self):
        return "".join(self.said)

    @property
    def uploads(self):
        return [path for path in self.folder.glob("globalvit-demo-*/uploads/**/*") if path.is_file()]

    def _listen(self):
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"serving the page at http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                self.is_up.set()
        self.is_up.set()

    def ask(self, method, path, body=None, **headers):
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def upload(self, **headers):
        return self.ask("POST", "/gradio_api/upload", MULTIPART, **{"Content-Type": FORM}, **headers)

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(END)
        self.listener.join(END)
        self.process.stderr.close()
        return status


FORM = "multipart/form-data; boundary=x"
MULTIPART = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n\x89PNG\r\n--x--\r\n'


@pytest.fixture
def served(given, tmp_path):
    started = Served(tmp_path, given.classify)
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait(END)


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGHUP", 143), ("SIGINT", 0)])
def test_uploads_are_gone_whatever_ends_the_page(served, number, status):
    assert served.upload()[0] == 200
    assert served.uploads
    assert served.end(getattr(signal, number)) == status
    assert not list(served.folder.glob("globalvit-demo-*"))
    assert "Traceback" not in served.text


def test_what_a_killed_page_left_is_removed_at_the_next_start(given, tmp_path):
    killed, live = Served(tmp_path, given.classify), Served(tmp_path, given.classify)
    try:
        assert killed.upload()[0] == live.upload()[0] == 200
        killed.end(signal.SIGKILL)
        assert len(live.uploads) == 2
        following = Served(tmp_path, given.classify)
        assert "removed temporary folders of killed pages in" in following.text
        assert len(live.uploads) == 1
        following.end(signal.SIGTERM)
        assert live.upload()[0] == 200
    finally:
        live.end(signal.SIGTERM)
    assert not list(tmp_path.glob("globalvit-demo-*"))


def test_what_others_send_is_refused_and_costs_no_traceback(served):
    own = f"http://127.0.0.1:{served.port}"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        status, text = served.upload(**headers)
        assert (status, text) == (403, b"requests from other sites are not allowed")
    assert not served.uploads
    assert served.upload(Origin=own)[0] == 200
    # Out of a slider's range.
    page = json.loads(served.ask("GET", "/config")[1])
    index = next(one["id"] for one in page["dependencies"] if len(one["inputs"]) == 6)
    values = [None, None, 0, 99, None, 0.6]
    session = {"fn_index": index, "data": values, "session_hash": "abcdef"}
    assert served.ask("POST", "/gradio_api/queue/join", json.dumps(session), **{"Content-Type": "application/json"})

    # More than the request says, and than the page takes.
    def endless():
        for _ in range(64):
            yield b"[" * 65536

    status, _ = served.ask("POST", "/gradio_api/queue/join", endless(), **{"Content-Type": "application/json"})
    assert status == 413
    # Visitors who leave while they send.
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", served.port)) as sock:
            head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\n"
            sock.sendall(head.encode() + b"Content-Length: 900\r\n\r\n" + MULTIPART[:60])
    time.sleep(2)
    assert served.ask("GET", "/config")[0] == 200
    served.end(signal.SIGTERM)
    assert "Traceback" not in served.text, served.text
