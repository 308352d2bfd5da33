"""Damaged databases, images and web servers: each case ends in an answer or in one sentence, soon and in little memory.

    python benchmarks/fuzz_data.py [--lmdb 1000] [--images 1000] [--urls 200] [--seed 0] [--first 0]

Each case is derived from the seed and its number, and runs in a separate process with limits on time and memory. The
final table counts the outcomes. A case that ends with neither an answer nor a one-line error is listed, and the exit
status is then 1. `--first 17 --lmdb 1` repeats case 17 alone. Linux only.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from io import BytesIO
from multiprocessing import Pipe, Process
from pathlib import Path, PurePosixPath

import lmdb
import numpy as np
import psutil
from PIL import Image

from globalvit.data.classification.dataset import open_split
from globalvit.data.common.images import OversizedImage, UnreadableImage, WrongLabels, read_image
from globalvit.data.storage.lmdb_build import build
from globalvit.data.storage.lmdb_decode import decode, has_direct
from globalvit.data.storage.lmdb_masks import open_mask_database
from globalvit.data.storage.lmdb_verify import verify
from globalvit.jobs import fetch
from globalvit.jobs.images import Source

SECONDS, MEMORY = 20, 2 * 2**30
# What the command line shows as one line.
SENTENCES = (ValueError, OSError, FloatingPointError)
ENDINGS = ("answered", "refused", "traceback", "killed", "endless", "memory")
PAGE = 4096
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    15,
    16,
    127,
    255,
    256,
    4095,
    4096,
    32767,
    65535,
    2**31 - 1,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
PLAIN, MASKS = "plain", "masks"


def main():
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-data-"))
    has_direct()
    made = {"lmdb": Databases(folder), "images": Images(), "urls": Urls()}
    rows, faults = Counter(), []
    for kind, cases in made.items():
        started = time.monotonic()
        for number in range(options.first, options.first + getattr(options, kind)):
            for action in cases.actions:
                ending, text = in_child(cases, action, f"{options.seed}-{number}")
                rows[f"{kind}: {action}", ending] += 1
                if ending in ENDINGS[2:]:
                    faults.append(f"{kind}: {action}, case {number}: {ending}: {text}")
                    print(faults[-1], flush=True)
        cases.close()
        print(f"{kind}: {time.monotonic() - started:.0f} s", flush=True)
    show(rows)
    shutil.rmtree(folder)
    return 1 if faults else 0


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("lmdb", 1000), ("images", 1000), ("urls", 200), ("seed", 0), ("first", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    return parser.parse_args()


def show(rows):
    names = dict.fromkeys(name for name, _ in rows)
    print(f"\n| {'cases':24} | number | {' | '.join(ENDINGS)} |\n|{'---|' * (len(ENDINGS) + 2)}")
    for name in names:
        counts = {ending: rows[name, ending] for ending in ENDINGS}
        cells = " | ".join(f"{number:{len(ending)}}" for ending, number in counts.items())
        print(f"| {name:24} | {sum(counts.values()):6} | {cells} |")


def in_child(cases, action, seed):
    """How a case ended, and what it said."""
    receiver, sender = Pipe(duplex=False)
    child = Process(target=limited, args=(cases, action, seed, sender))
    child.start()
    sender.close()
    try:
        ending, text = receiver.recv() if receiver.poll(SECONDS) else ("endless", f"more than {SECONDS} s")
    except EOFError:
        child.join()
        number = -(child.exitcode or 0)
        ending, text = "killed", signal.Signals(number).name if number > 0 else f"exit status {-number}"
    child.kill()
    child.join()
    receiver.close()
    return ending, text


def limited(cases, action, seed, sender):
    """Run a case under its limits and send how it ended."""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        cases.run(action, random.Random(seed))
        sender.send(("answered", ""))
    except MemoryError:
        sender.send(("memory", f"more than {MEMORY // 2**20} MiB"))
    except SENTENCES as error:
        text = str(error)
        is_sentence = bool(text) and "\n" not in text and len(text) < 2000
        sender.send(("refused" if is_sentence else "traceback", text))
    except BaseException:
        sender.send(("traceback", " / ".join(traceback.format_exc().splitlines()[-4:])))


def mutated(chance, data, step=1):
    """The bytes with a few damages of one kind; `step` is the size of what is moved about as a whole."""
    data = bytearray(data)
    place = lambda size=1: chance.randrange(max(1, len(data) - size))  # noqa: E731
    kind = chance.choice(("bits", "bits", "number", "number", "zero", "cut", "copy", "noise", "longer"))
    for _ in range(chance.choice((1, 1, 2, 4, 16)) if kind in ("bits", "number") else 1):
        at, start = place(8), place() // step * step
        size = step if step > 1 else chance.choice((1, 8, 64, 512))
        if kind == "bits":
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "number":
            form = chance.choice(("<H", "<I", "<Q", ">H", ">I"))
            struct.pack_into(form, data, at, chance.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form)))
        elif kind == "zero":
            data[start : start + size] = bytes(size)
        elif kind == "cut":
            del data[place() :]
        elif kind == "copy":
            source = place() // step * step
            data[start : start + size] = data[source : source + size]
        elif kind == "noise":
            data[start : start + size] = chance.randbytes(size)
        else:
            data += chance.randbytes(chance.choice((1, 100, 5000)))
    return bytes(data)


class Databases:
    """Databases damaged in their pages, headers and indexes."""

    actions = ("open and read", "verify", "build")

    def __init__(self, folder):
        self.folder, chance = folder, np.random.default_rng(0)
        for split, number in (("train", 300), ("val", 12)):
            for index in range(number):
                image = Image.fromarray(chance.integers(0, 256, (12, 10 + index % 30, 3), np.uint8))
                place = folder / PLAIN / split / "abc"[index % 3] / f"{'long' * (index % 20)}{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                image.resize((90, 90) if index % 7 == 0 else image.size).save(place)
                if index < 20:
                    for part, made in (("images", image), ("annotations", image.convert("L").point(lambda v: v % 3))):
                        place = folder / MASKS / part / split / f"{index}.png"
                        place.parent.mkdir(parents=True, exist_ok=True)
                        made.save(place)
        (folder / MASKS / "classes.json").write_text('["a", "b", "c"]')
        for name in (PLAIN, MASKS):
            build(folder / name, folder / "built" / name)
            # Once more with other files, so that there are free pages.
            for file in (folder / name).rglob("1*.png"):
                if name == PLAIN:
                    file.unlink()
            build(folder / name, folder / "built" / name)
        self.files = sorted((folder / "built").rglob("data.mdb"))

    def run(self, action, chance):
        """Damage a copy of a database and use it."""
        file = chance.choice(self.files)
        name, split = file.parts[-3:-1]
        work = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            target = work / "lmdb" / split
            shutil.copytree(file.parent, target)
            self.damage(chance, target / "data.mdb")
            self.act(action, name, split, work / "lmdb")
        finally:
            shutil.rmtree(work)

    def act(self, action, name, split, databases):
        """Use a database; images that cannot be read do not count."""
        src = self.folder / name
        if action == "verify":
            verify(databases, src, splits=(split,), readers=1)
        elif action == "build":
            build(src, databases, splits=(split,), readers=1)
            open_split(databases, split) if name == PLAIN else open_mask_database(databases / split)
        else:
            source = open_split(databases, split) if name == PLAIN else open_mask_database(databases / split)
            for index in range(len(source)):
                try:
                    source.read(index)
                except (UnreadableImage, OversizedImage, WrongLabels):
                    continue

    def damage(self, chance, file):
        """Damage values, any bytes, or what LMDB follows."""
        kind = chance.random()
        if kind < 0.3:
            with lmdb.open(str(file.parent), lock=False) as database, database.begin(write=True) as transaction:
                self.damage_values(chance, transaction)
            return
        data = bytearray(file.read_bytes())
        if kind < 0.6:
            file.write_bytes(mutated(chance, data, chance.choice((1, PAGE))))
            return
        # Where it hurts: meta pages, heads of pages, and heads of nodes.
        page = chance.choice((0, PAGE, *self.trees(data), *self.trees(data)))
        for _ in range(chance.choice((1, 1, 2))):
            nodes = [page + at for at in struct.unpack_from("<8H", data, page + 16) if at < PAGE - 16]
            begin = (
                chance.choice((page, page + 16, *nodes)) if page > PAGE else page + chance.choice((0, 16, 40, 88, 136))
            )
            at = begin + chance.randrange(24)
            size = chance.choice((1, 2, 4, 8))
            now = int.from_bytes(data[at : at + size], "little")
            new = chance.choice(
                (now + 1, now - 1, now ^ 1 << chance.randrange(8 * size), *NUMBERS, chance.randrange(300))
            )
            data[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")
        file.write_bytes(data)

    def trees(self, data):
        """Offsets of branch and leaf pages."""
        return [at for at in range(2 * PAGE, len(data), PAGE) if struct.unpack_from("<H", data, at + 10)[0] in (1, 2)]

    def damage_values(self, chance, transaction):
        """Write another header or index."""
        key = chance.choice((b"/globalvit", b"/globalvit", b"/names", b"/records"))
        value = transaction.get(key)
        if key == b"/globalvit" and chance.random() < 0.7:
            header = json.loads(value)
            name = chance.choice(list(header))
            header[name] = chance.choice(
                (None, "x", -1, 2**70, [], [1], ["a"], {}, True, 1.5, header[name] * 2 if header[name] else 0)
            )
            transaction.put(key, json.dumps(header).encode())
        elif chance.random() < 0.2:
            transaction.delete(key)
        else:
            transaction.put(key, mutated(chance, value)[:100_000] or b"x")

    def close(self):
        """Nothing is to be ended."""


class Images:
    """Images of many formats with damaged bytes."""

    actions = ("read", "decode")

    def __init__(self):
        image = Image.effect_mandelbrot((96, 72), (-2, -1.5, 1, 1.5), 60)
        color = Image.merge("RGB", (image, image.rotate(180), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
        exif = Image.Exif()
        exif[0x0112] = 6
        palette, alpha, more = color.convert("P"), color.convert("RGBA"), {"save_all": True, "append_images": [color]}
        ways = [
            *((made, "JPEG", {}) for made in (color, image, color.convert("CMYK"))),
            (color, "JPEG", {"progressive": True, "exif": exif}),
            *((made, "PNG", {}) for made in (color, palette, image.convert("I;16"))),
            (alpha, "PNG", {"exif": exif}),
            (palette, "GIF", more),
            *((color, "TIFF", {"compression": name}) for name in ("raw", "tiff_lzw", "jpeg")),
            (color, "TIFF", {"compression": "tiff_adobe_deflate"} | more),
            (alpha, "WEBP", {"lossless": True}),
            *((color, kind, {}) for kind in ("BMP", "WEBP", "AVIF", "JPEG2000", "PPM")),
        ]
        self.samples = []
        for made, kind, options in ways:
            stream = BytesIO()
            made.save(stream, kind, **options)
            self.samples.append(stream.getvalue())

    def run(self, action, chance):
        """Damage an image and read it."""
        data = mutated(chance, chance.choice(self.samples))
        if chance.random() < 0.3:
            data = mutated(chance, data)
        if chance.random() < 0.1:
            data = data[: len(data) // 2] + chance.choice(self.samples)[len(data) // 2 :]
        image = read_image(data, "image") if action == "read" else decode(data, "image")
        assert image.mode == "RGB"

    def close(self):
        """Nothing is to be ended."""


class Urls:
    """Web servers that answer in any way, and addresses of any kind."""

    actions = ("download",)

    def __init__(self):
        fetch.DOWNLOAD_SECONDS, fetch.SILENCE_SECONDS, fetch.DOWNLOAD_BYTES = 3, 2, 2**22
        stream = BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "PNG")
        Hostile.png = stream.getvalue()
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self.server = Process(target=serve, args=(listener,), daemon=True)
        self.server.start()
        listener.close()

    def run(self, action, chance):  # noqa: ARG002 - one signature
        """Make up an address and download it."""
        path = "".join(chance.choices("abz09/._%?&= é\\;", k=chance.randrange(12)))
        address = f"http://{self.address}/{chance.randrange(10**9)}/{path}"
        if chance.random() < 0.2:
            at = chance.randrange(len(address))
            wild = chance.choice(
                ("\0", " ", "\n", "[", "]", "@", "#", "%zz", "é", "\udcff", "//", ":", "\u202e", "x" * 70_000)
            )
            address = address[:at] + wild + address[at + chance.randrange(3) :]
        Source(address, PurePosixPath("x")).read()

    def close(self):
        """End the server."""
        self.server.kill()
        self.server.join()


class Hostile(socketserver.StreamRequestHandler):
    """Answers as the number in the path decides."""

    png = b""

    def handle(self):
        """Answer one request."""
        words = self.rfile.readline(100_000).split()
        number = words[1].split(b"/")[1] if len(words) > 1 and words[1].count(b"/") > 1 else b""
        chance = random.Random(number)
        while self.rfile.readline(100_000).strip():
            pass
        parts = self.answer(chance, number)
        try:
            for part in parts:
                self.wfile.write(part)
        except OSError:
            pass

    def answer(self, chance, number):
        """The parts of an answer."""
        body = chance.choice((self.png, self.png, mutated(chance, self.png), b"", b"<html>", bytes(5 * 2**20)))
        status = chance.choice(
            (b"200 OK",) * 5 + (b"404 No", b"302 Found", b"301 X", b"307 Y", b"999 Z", b"100 Go", b"x", b"-1 a")
        )
        headers = [b"HTTP/1.1 " + status]
        targets = (
            b"/" + number + b"/again",
            b"/%d/" % chance.randrange(10**9),
            b"ftp://h/x",
            b"file:///etc/passwd",
            b"//",
            b"\xff\xfe",
            b"http://[",
            b"http://127.0.0.1:1/",
            b"?",
        )
        headers += [b"Location: " + chance.choice(targets)] * (chance.random() < 0.5)
        length = chance.choice((len(body), len(body), -1, 0, 3, 2**40, 10**30))
        headers += chance.choice(
            ([b"Content-Length: %d" % length], [b"Content-Length: x"], [], [b"Transfer-Encoding: chunked"])
        )
        headers += chance.choice(
            ([], [], [b"X: y"] * 300, [b"X: " + b"z" * 70_000], [b"no colon"], [b": "], [b"Content-Encoding: gzip"])
        )
        sent = b"\r\n".join([*headers, b"", b""]) + body
        if chance.random() < 0.1:
            sent = mutated(chance, sent)
        if chance.random() < 0.2:
            return self.slow(sent[:2000] + bytes(2000))
        if chance.random() < 0.05:
            return self.endless(sent)
        return [sent]

    def slow(self, data):
        """A byte at a time."""
        for start in range(len(data)):
            time.sleep(0.02)
            yield data[start : start + 1]

    def endless(self, data):
        """An answer without an end."""
        yield data
        while True:
            yield bytes(2**16)


def serve(listener):
    server = socketserver.ThreadingTCPServer(("", 0), Hostile, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = listener
    server.serve_forever()


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
