"""Open damaged and hostile checkpoints of all forms, each in a child process with limits on time and memory.

    python benchmarks/fuzz_checkpoints.py [--seconds 300] [--seed 0] [--form zip] [--keep FOLDER]

A small GC ViT is saved in every form that is read; one copy after the other is changed at random: bytes, pickles, JSON,
tensors, names, archives. A case ends as `ok` (opened), `refused` (one sentence that names the file), `traceback`,
`hang`, `memory`, `killed` by a signal, or `code` where something that the file holds was run. Prints a table and all
texts of refusals; fails if anything but the first two happened. `--case 123` repeats one case. Linux only.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

import globalvit as gv
from globalvit.models import variants
from globalvit.weights import gcvit_official, timm
from globalvit.weights.load import load_weights, read_weights

MODEL = "gcvit_xxtiny"
SECONDS, MEMORY = 20, 2 * 2**30
OUTCOMES = ("ok", "refused", "traceback", "hang", "memory", "killed", "code")
GOOD = ("ok", "refused")
NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 10**9, 10**12, 10**30)
VALUES: tuple[Any, ...] = (None, True, [], {}, "", "x", [1], {"a": 1}, 1.5, float("nan"), "x" * 10_000, [[]], *NUMBERS)


class Code:
    """Leaves a file where it is unpickled by something that runs what it reads."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"touch {self.canary}",)


def make_small() -> None:
    """Make the model of the tables so small that a thousand of its files are quickly written."""
    small = replace(variants.GCVIT[MODEL], width=16, depths=(2, 2, 2, 2))
    variants.GCVIT[MODEL] = variants.VARIANTS[MODEL] = small


def write_all(folder: Path) -> dict[str, Path]:
    """The model in every form: name of the form → file."""
    model = gv.create_model(MODEL, num_classes=4, image_size=32, classes=list("abcd"))
    state = model.state_dict()
    args = argparse.Namespace(lr=0.1, model=MODEL, tags=["a", None], cooldown=3)
    official = gcvit_official.from_ours(state)
    both = {"epoch": 3, "arch": MODEL, "state_dict": official, "state_dict_ema": official, "args": args, "metric": 79.9}
    lightning = {"state_dict": {f"model.{name}": value for name, value in state.items()}, "hyper_parameters": {"lr": 1}}
    averaged = {"model": state, "model_ema": torch.optim.swa_utils.AveragedModel(model).state_dict()}
    files = {"zip": (state, 2, True), "zip4": (both, 4, True), "zip5": (lightning, 5, True)}
    files |= {"legacy": (both, 2, False), "legacy4": (averaged, 4, False)}
    made: dict[str, Path] = {}
    for name, (content, protocol, is_zip) in files.items():
        made[name] = folder / f"{name}.pth"
        torch.save(content, made[name], pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    made["ours"] = folder / "ours.safetensors"
    gv.save_weights(model, made["ours"])
    made["plain"] = folder / "plain.safetensors"
    save_file(timm.from_ours(state), made["plain"])
    made["run"] = folder / "run" / "checkpoints" / "step-1" / "model.safetensors"
    gv.save_weights(model, made["run"])
    (folder / "run" / "config.yaml").write_text("model: gcvit_xxtiny\nbatch_size: 8\n")
    (folder / "run" / "checkpoints" / "best").write_text("step-1\n")
    made["shards"] = write_shards(folder / "shards", state)
    try:
        from globalvit.keras.write import write_weights
    except ImportError:
        return made
    made["keras"] = folder / "keras.weights.h5"
    write_weights(made["keras"], {name: value.numpy() for name, value in state.items()}, model.spec)
    return made


def write_shards(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    names = list(state)
    places = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: state[name] for name in names if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    """Cut, flip, overwrite, insert, repeat or delete bytes, half of the times near the start or the end."""
    raw = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        near = chance.randrange(min(len(raw), 4096)) if raw else 0
        at = chance.choice((near, len(raw) - 1 - near, chance.randrange(len(raw) or 1)))
        at, size = max(0, at), chance.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = chance.randrange(7)
        if kind == 0:
            del raw[at:]
        elif kind == 1 and raw:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            raw[at : at + size] = chance.randbytes(len(raw[at : at + size]))
        elif kind == 3:
            raw[at:at] = chance.randbytes(size)
        elif kind == 4:
            raw[at:at] = raw[at : at + size]
        elif kind == 5:
            del raw[at : at + size]
        else:
            number = struct.pack("<Q", chance.choice(NUMBERS) % 2**64)[: chance.choice((1, 2, 4, 8))]
            raw[at : at + len(number)] = number
    return bytes(raw)


def change_zip(source: Path, target: Path, chance: random.Random) -> None:
    """Change one entry of an archive that stays whole, or leave out, repeat, rename or compress entries."""
    with zipfile.ZipFile(source) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = next(index for index, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    at = at if chance.random() < 0.7 else chance.randrange(len(entries))
    name, data = entries[at]
    kind = chance.randrange(10)
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries.append((name, change_bytes(data, chance)))
    elif kind == 2:
        entries[at] = (name + "x", data)
    elif kind == 3:
        entries[at] = (name, data[: len(data) // 2] + data[:1] * 10**6 + data[len(data) // 2 :])
    else:
        entries[at] = (name, change_bytes(data, chance))
    method = zipfile.ZIP_DEFLATED if chance.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def change_json(value: Any, chance: random.Random) -> Any:
    """Replace, add or remove something somewhere in JSON."""
    if chance.random() < 0.25 or not value or not isinstance(value, dict | list):
        return chance.choice(VALUES)
    changed = value.copy()
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = chance.randrange(6)
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[chance.choice(("x", "spec", "a" * 10_000, "\n\x1b[31m", "__metadata__"))] = changed.pop(key)
    else:
        changed[key] = change_json(value[key], chance)
    return changed


def change_header(data: bytes, chance: random.Random) -> bytes:
    """Change the JSON of a safetensors file, or that inside its metadata; the length before it is right again."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {})
    if "globalvit" in metadata and chance.random() < 0.6:
        metadata["globalvit"] = json.dumps(change_json(json.loads(metadata["globalvit"]), chance))
    else:
        header = change_json(header, chance)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def change_tensors(content: Any, chance: random.Random, canary: Path) -> Any:
    """Change a tensor, a name or a part of a checkpoint."""
    if not isinstance(content, dict):
        return chance.choice(VALUES)
    inner = [name for name, value in content.items() if isinstance(value, dict)]
    if inner and chance.random() < 0.7:
        name = chance.choice(inner)
        return content | {name: change_tensors(content[name], chance, canary)}
    name = chance.choice(list(content) or ["x"])
    value = content.get(name)
    tensor = value if isinstance(value, torch.Tensor) else torch.ones(3)
    big = chance.choice((10**4, 10**7, 10**9, 2**40))
    changes: list[Callable[[], Any]] = [
        lambda: tensor.to(getattr(torch, chance.choice(("int8", "bool", "complex64", "float8_e4m3fn", "float64")))),
        lambda: torch.full_like(tensor, chance.choice((float("nan"), float("inf"))), dtype=torch.float32),
        lambda: torch.zeros(1).expand(big, 2),
        lambda: torch.zeros(1).expand(*(big if axis == 0 else side for axis, side in enumerate(tensor.shape))),
        lambda: tensor.reshape(-1)[:1].reshape(()),
        lambda: tensor[None],
        lambda: tensor.reshape(-1)[: tensor.numel() // 2],
        lambda: torch.empty(chance.choice((0, 1, big)), device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: Code(canary),
        lambda: Path,
        lambda: chance.choice(VALUES),
    ]
    changed = dict(content)
    kind = chance.randrange(6)
    if kind == 0:
        changed.pop(name, None)
    elif kind == 1:
        changed[chance.choice((1, b"x", None, "x" * 10_000, "a\nb", ("t",), 2.5))] = changed.pop(name, tensor)
    else:
        changed[name] = chance.choice(changes)()
    return changed


def mutate(form: str, honest: Path, folder: Path, chance: random.Random, canary: Path) -> Path:
    """Write a changed copy of a checkpoint into a folder; return what is to be opened."""
    target = folder / honest.name
    if form == "shards":
        for file in honest.parent.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        if chance.random() < 0.6:
            target.write_text(json.dumps(change_json(json.loads(honest.read_text()), chance)))
            return target
        target = chance.choice(sorted(folder.iterdir()))
        target.write_bytes(change_bytes(target.read_bytes(), chance))
        return chance.choice((folder / honest.name, folder))
    if form == "run":
        run = honest.parents[2]
        target = folder / honest.relative_to(run)
        target.parent.mkdir(parents=True)
        target.write_bytes(honest.read_bytes())
        text = (run / "config.yaml").read_bytes()
        (folder / "config.yaml").write_bytes(change_bytes(text, chance) if chance.random() < 0.7 else text)
        best = b"step-1\n"
        (folder / "checkpoints" / "best").write_bytes(change_bytes(best, chance) if chance.random() < 0.3 else best)
        return folder
    if form.startswith("zip") and chance.random() < 0.4:
        change_zip(honest, target, chance)
    elif honest.suffix == ".safetensors" and chance.random() < 0.6:
        target.write_bytes(change_header(honest.read_bytes(), chance))
    elif honest.suffix == ".pth" and chance.random() < 0.5:
        content = torch.load(honest, weights_only=False)
        protocol, is_zip = chance.choice((2, 3, 4, 5)), form.startswith("zip")
        changed = change_tensors(content, chance, canary)
        torch.save(changed, target, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    else:
        target.write_bytes(change_bytes(honest.read_bytes(), chance))
    return target


def use(form: str, path: Path, seed: int) -> None:
    """Open a checkpoint as users do."""
    if form == "keras":
        from globalvit.keras.files import read_file

        weights = replace(read_weights(read_file(path)), source=str(path))
        load_weights(gv.create_model(MODEL, num_classes=4, image_size=32), weights)
        return
    model = gv.open_checkpoint(path, use_ema=seed % 3 != 0)
    model.predict(torch.zeros(3, 32, 32))


def attempt(form: str, path: Path, seed: int) -> tuple[str, str]:
    try:
        use(form, path, seed)
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        text = str(error)
        if "\n" in text or len(text) > 4000:
            return "traceback", f"more than a sentence: {text[:300]!r}"
        if path.name not in text and path.parent.name not in text:
            return "traceback", f"the file is not named: {text[:300]}"
        return "refused", text
    except BaseException as error:  # whatever else comes out is what is looked for
        return "traceback", f"{type(error).__name__}: {str(error)[:300]}"
    return "ok", ""


def in_child(form: str, path: Path, seed: int) -> tuple[str, str]:
    """Open a checkpoint in a fork of this process; what happened, in a word and a text."""
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pid = os.fork()
    if pid == 0:
        signal.alarm(3 * SECONDS)
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY, used + 2 * MEMORY))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(writer, json.dumps(attempt(form, path, seed)).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + SECONDS
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)
            return "hang", f"more than {SECONDS} s"
        time.sleep(0.005)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    if status or not answer:
        return "killed", f"status {status}"
    if (usage.ru_maxrss - before) * 1024 > MEMORY:
        return "memory", f"{(usage.ru_maxrss - before) // 1024} MiB"
    outcome, text = json.loads(answer)
    return outcome, text


def cases(files: dict[str, Path], options: argparse.Namespace, root: Path) -> Iterator[tuple[str, int, str, str]]:
    """(form, seed, outcome, text) of one case after the other until the time is over."""
    end = time.monotonic() + options.seconds
    forms = [form for form in files if options.form in (None, form)]
    seeds = [options.case] if options.case is not None else range(options.seed * 10**6, (options.seed + 1) * 10**6)
    for seed in seeds:
        if time.monotonic() > end:
            return
        chance = random.Random(seed)
        form = forms[seed % len(forms)]
        with tempfile.TemporaryDirectory(dir=root) as folder:
            canary = root / "canary"
            path = mutate(form, files[form], Path(folder), chance, canary)
            outcome, text = in_child(form, path, seed)
            if canary.exists():
                canary.unlink()
                outcome, text = "code", "the canary is there"
            if outcome not in GOOD and options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                if path.is_file():
                    (options.keep / f"{seed}-{path.name}").write_bytes(path.read_bytes())
        yield form, seed, outcome, text.replace(folder, "FOLDER").replace(str(path), "FILE")


def show(counts: Counter[tuple[str, str]], texts: Counter[str], bad: list[str]) -> None:
    forms = sorted({form for form, _ in counts})
    print("form".ljust(10), *(name.rjust(10) for name in OUTCOMES))
    for form in forms:
        print(form.ljust(10), *(str(counts[form, name]).rjust(10) for name in OUTCOMES))
    print("all".ljust(10), *(str(sum(counts[form, name] for form in forms)).rjust(10) for name in OUTCOMES))
    print(f"\n{len(texts)} kinds of refusals:")
    for text, number in texts.most_common():
        print(f"{number:6} {text[:400]}")
    print(f"\n{len(bad)} cases that should not be:")
    print("\n".join(bad[:100]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form")
    parser.add_argument("--case", type=int)
    parser.add_argument("--keep", type=Path, help="folder for the files of cases that should not be")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    make_small()
    counts: Counter[tuple[str, str]] = Counter()
    texts: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        (honest := Path(folder) / "honest").mkdir()
        files = write_all(honest)
        # Kernels and libraries are loaded once, not in every child.
        use("zip", files["zip"], 1)
        for form, path in files.items():
            outcome, text = in_child(form, honest / "run" if form == "run" else path, 1)
            assert outcome == "ok", f"{form}: {text}"
        for form, seed, outcome, text in cases(files, options, Path(folder)):
            counts[form, outcome] += 1
            if outcome == "refused":
                texts[re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", text))[:200]] += 1
            elif outcome != "ok":
                bad.append(f"--case {seed} {form} {outcome}: {text[:300]}")
                print(bad[-1], file=sys.stderr, flush=True)
    show(counts, texts, bad)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
