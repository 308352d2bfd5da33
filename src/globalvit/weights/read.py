"""Opening weight files without running anything they hold.

Only tensors, plain containers, `argparse.Namespace` (which the official GC ViT checkpoints hold) and NumPy's numbers
(which those of OpenMMLab may hold) are unpickled; a file with anything else is refused, and the refusal names what it
holds.
"""

import argparse
import io
import json
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from globalvit.weights.names import listed

METADATA_KEY = "globalvit"
# Where training tools keep the weights of a checkpoint; the averaged ones come first.
EMA_ENTRIES = ("state_dict_ema", "model_ema")
ENTRIES = ("state_dict", "model")
# DistributedDataParallel and torch.compile put these in front of every name.
WRAPPERS = ("module.", "_orig_mod.")
ZIP_START = b"PK\x03\x04"
# The pickled magic number that torch.save wrote before it wrote zip files.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_PICKLES = 4
# What NumPy's numbers are pickled as; its older releases called the module otherwise.
_NUMBER: Any = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [
    argparse.Namespace,
    _NUMBER,
    (_NUMBER, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "bool")),
]
SAFE_NAMES = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "_codecs.encode",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Weights taken out of a file.

    Attributes:
        state: names → tensors, in the file's own form.
        entry: the part of the checkpoint they were in, None where the file holds nothing else.
        passed_over: other parts of it with weights.
        metadata: what `save_weights` wrote beside the tensors; empty for files of others.
        classes: the names that OpenMMLab's tools wrote beside the weights; None where there are none.
    """

    state: dict[str, Tensor]
    entry: str | None = None
    passed_over: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


def open_weights(path: Path, *, use_ema: bool = True) -> Opened:
    """Read a safetensors file or one of `torch.save`.

    Args:
        path: the file.
        use_ema: take the averaged weights where a checkpoint has both.

    Raises:
        ValueError: it is cut short, no weight file, holds code, or holds no weights.
    """
    start = _start(path)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    if not start.startswith((ZIP_START, LEGACY_START)):
        raise ValueError(_strange(path, start))
    return unwrap(_open_torch(path, start.startswith(ZIP_START)), use_ema=use_ema, source=str(path))


def unwrap(content: Any, *, use_ema: bool = True, source: str = "the given state dict") -> Opened:
    """Take the weights out of a checkpoint, or take a bare state dict as it is.

    Raises:
        ValueError: there are no weights in it; the text names what there is.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}; expected a state dict")
    order = (*EMA_ENTRIES, *ENTRIES) if use_ema else (*ENTRIES, *EMA_ENTRIES)
    parts = [name for name in order if _is_state(content.get(name))]
    if parts:
        rest = {"entry": parts[0], "passed_over": tuple(parts[1:]), "classes": _classes(content)}
        return Opened(state=_plain(content[parts[0]]), **rest)
    if not _is_state(content):
        raise ValueError(
            f"{source} holds no weights: its entries are {listed(map(str, content))}; expected tensors by name, or "
            f"such a state dict under {', '.join(order)}"
        )
    return Opened(state=_plain(content))


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_weights` wrote beside the tensors, without reading those; empty for files of others.

    Raises:
        ValueError: the file is cut short, or its metadata is not understood.
    """
    if _start(path)[8:9] != b"{":
        return {}
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
        return json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(_damaged(path, error)) from error


def _open_safetensors(path: Path) -> Opened:
    metadata = read_metadata(path)
    with safe_open(path, "pt") as file:
        return Opened(state=_plain({name: file.get_tensor(name) for name in file.keys()}), metadata=metadata)  # noqa: SIM118


def _open_torch(path: Path, is_zip: bool) -> Any:
    with torch.serialization.safe_globals(SAFE):
        try:
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else _legacy_globals(path)
            if not refused:
                # Mapped, not read: an official file is half optimizer state that nobody asks for.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except (RuntimeError, EOFError, ValueError) as error:
            raise ValueError(_damaged(path, error)) from error
    raise ValueError(
        f"{path} holds more than weights: {', '.join(sorted(refused))}; it was not opened, since such a file can run "
        f"code. Get it as safetensors, or, if you trust its maker, save its state dict alone"
    )


def _legacy_globals(path: Path) -> list[str]:
    """What an old file of torch.save would import, read off its pickles without running them."""
    with path.open("rb") as file:
        names = {name for _ in range(LEGACY_PICKLES) for name in _globals(file)}
    return [name for name in names if name not in SAFE_NAMES and not name.startswith("torch.")]


def _globals(file: io.BufferedReader) -> Iterator[str]:
    """`module.name` of every import in the pickle at the file's position."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _classes(content: Mapping[Any, Any]) -> tuple[str, ...] | None:
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and names else None


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(hasattr(entry, "shape") for entry in value.values())


def _plain(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors under names without the prefixes of wrappers."""
    names = list(state)
    # Twice, since either may be around the other.
    for wrapper in (*WRAPPERS, *WRAPPERS):
        if all(name.startswith(wrapper) for name in names):
            names = [name.removeprefix(wrapper) for name in names]
    return {name: torch.as_tensor(value) for name, value in zip(names, state.values(), strict=True)}


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160] or "it ends too early"
    return f"{path} is damaged or cut short at {path.stat().st_size} bytes ({reason}); fetch or copy it again"


def _strange(path: Path, start: bytes) -> str:
    if not start:
        what = "is empty"
    elif start.lstrip().startswith(b"<"):
        what = "holds a web page instead of weights"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file it points to"
    elif start.startswith(b"\x80"):
        what = "is a pickle that torch.save did not write, and such a file can run code"
    else:
        what = f"is no weight file (it begins with {start[:12]!r})"
    return f"{path} {what}; expected safetensors or a file of torch.save: fetch it again"
