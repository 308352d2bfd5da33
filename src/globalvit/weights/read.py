"""Open weight files without running code in them.

Only tensors, plain containers, `argparse.Namespace` (which the official GC ViT checkpoints hold) and NumPy's numbers
(which those of OpenMMLab may hold) are unpickled; a file with anything else is refused, and the refusal names what it
holds.
"""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from globalvit.regular import check_regular
from globalvit.weights import torch_files
from globalvit.weights.names import RefusedError, listed, shape, shown
from globalvit.weights.torch_files import is_torch_file

Parts = dict[str, Mapping[str, Any]]
METADATA_KEY = "globalvit"
INDEX = ".index.json"
# Where training tools keep averaged weights, and the raw ones.
EMA_ENTRIES = (
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema_model"),
    *("ema_model_state_dict", "averaged_model"),
)
RAW_ENTRIES = ("state_dict", "model", "model_state_dict", "net", "network", "params", "weights")
# Lightning's weight averaging puts the averaged weights under `state_dict` and the raw ones here.
LIGHTNING_RAW, LIGHTNING_AVERAGING = "current_model_state", "averaging_state"
# DistributedDataParallel puts this in front of every name.
WRAPPER = "module."
# torch.compile, activation checkpointing and FSDP put these in front of any part of a name.
WRAPPERS_INSIDE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
MOST_ENTRIES = 20_000
WEIGHTS_WANTED = "give a weight file"
# What an index of shards may have, 100 bytes a name.
MOST_INDEX = 8 * 2**20
_damage_numbers = (None, errno.EINVAL, errno.EOVERFLOW)


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """Weights read from a file.

    Attributes:
        state: names → tensors, in the file's own form.
        entry: the part of the checkpoint they were in, None where the file holds nothing else.
        passed_over: other parts of it with weights.
        metadata: what `save_weights` wrote beside the tensors; empty for files of others.
        classes: the names that OpenMMLab's tools wrote beside the weights; None where there are none.
        size: bytes of the file, None for a state dict in memory.
    """

    state: dict[str, Tensor]
    entry: str | None = None
    passed_over: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    size: int | None = None


def open_weights(path: Path, *, use_ema: bool = True) -> Opened:
    """Read a safetensors file, one of `torch.save`, or the index of a file in several parts.

    Args:
        path: the file.
        use_ema: take the averaged weights where a checkpoint has both; false takes the raw ones.

    Raises:
        ValueError: it is cut short, no weight file, holds code, declares more than it holds, or holds no such weights.
        OSError: it cannot be read.
    """
    if path.name.endswith(INDEX):
        return _open_shards(path, use_ema=use_ema)
    start = _start(path)
    if start[8:9] == b"{":
        opened = _open_safetensors(path)
    elif is_torch_file(start):
        opened = _open_torch(path, use_ema)
    else:
        raise RefusedError(_strange(path, start))
    _check_entries(opened.state, path, path.stat().st_size)
    return opened


def unwrap(content: Any, *, use_ema: bool = True, source: str = "the given state dict") -> Opened:
    """Return the weights of a checkpoint, or a bare state dict as it is.

    Raises:
        ValueError: there are no weights in it, or only averaged ones with `use_ema=False`; the text says so.
    """
    if not isinstance(content, Mapping):
        raise RefusedError(f"{source} holds a {type(content).__name__}; expected a state dict")
    if _is_state(content):
        return Opened(state=_plain(content, source))
    averaged, raw = _parts(content, source)
    order = [*averaged, *raw] if use_ema else [*raw]
    if not order and averaged:
        raise RefusedError(
            f"{source} holds averaged (EMA) weights only, under {next(iter(averaged))!r}; leave out use_ema=False "
            f"(--no-ema) to use them"
        )
    if not order:
        has = f"its entries are {listed(map(str, content))}" if content else "it is empty"
        raise RefusedError(
            f"{source} holds no weights: {has}; expected tensors by name, or such a state dict under "
            f"{', '.join((*RAW_ENTRIES, *EMA_ENTRIES))}"
        )
    parts = averaged | raw
    state = _plain(parts[order[0]], f"{source}, under {order[0]!r},")
    passed_over = tuple(name for name in parts if name != order[0])
    return Opened(state=state, entry=order[0], passed_over=passed_over, classes=_classes(content))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `save_weights` wrote, without reading the tensors; empty for other files.

    Raises:
        ValueError: the file is cut short, or its metadata is not understood.
    """
    if path.name.endswith(INDEX) or _start(path)[8:9] != b"{":
        return {}
    with _in_one_sentence(path), safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
        if not isinstance(metadata, dict):
            raise TypeError(f"its metadata is a {type(metadata).__name__}")
    return metadata


@contextmanager
def _in_one_sentence(path: Path) -> Iterator[None]:
    """Turn any error of the libraries about a damaged file into one sentence.

    Raises:
        ValueError: something was raised inside that is not a sentence of ours about this file.
        OSError: the system cannot read the file.
        MemoryError: there is too little memory.
    """
    try:
        yield
    except RefusedError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} needs more memory than there is; free some") from error
    except OSError as error:
        if error.errno in _damage_numbers:
            raise RefusedError(_damaged(path, error)) from error
        raise
    except Exception as error:
        # The libraries have no common class for it, and hostile files reach all corners of them.
        raise RefusedError(_damaged(path, error)) from error


def _open_safetensors(path: Path) -> Opened:
    metadata = read_metadata(path)
    with _in_one_sentence(path), safe_open(path, "pt") as file:
        names = list(file.keys())
        if len(names) > MOST_ENTRIES:
            raise RefusedError(_too_many(path, len(names)))
        state = {name: file.get_tensor(name) for name in names}
        return Opened(state=_plain(state, str(path)), metadata=metadata, size=path.stat().st_size)


def _open_torch(path: Path, use_ema: bool) -> Opened:
    size = path.stat().st_size
    with _in_one_sentence(path), torch_files.content(path) as (content, is_copy):
        opened = unwrap(content, use_ema=use_ema, source=str(path))
        _check_entries(opened.state, path, size)
        if is_copy:
            opened = replace(opened, state={name: value.clone() for name, value in opened.state.items()})
        return replace(opened, size=size)


def _open_shards(path: Path, *, use_ema: bool) -> Opened:
    """Read the parts that the index of a file in several parts names, all in the index's own folder."""
    with _in_one_sentence(path):
        if path.stat().st_size > MOST_INDEX:
            raise RefusedError(f"{path} has more than {MOST_INDEX} bytes; expected an index of names and their files")
        index = json.loads(path.read_text(encoding="utf-8"))
        places: dict[str, str] = index["weight_map"]
        files = sorted(set(places.values()))
        if any(Path(file).name != file for file in files):
            raise RefusedError(f"{path} names files in other folders; expected its parts beside it")
    missing = [file for file in files if not (path.parent / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names files that are not beside it: {listed(missing)}; copy all parts")
    state: dict[str, Tensor] = {}
    for file in files:
        part = open_weights(path.parent / file, use_ema=use_ema).state
        state |= {name: value for name, value in part.items() if places.get(name) == file}
    absent = [name for name in places if name not in state]
    if absent:
        raise RefusedError(
            f"the parts of {path} do not hold {len(absent)} of its entries: {listed(absent)}; fetch them again"
        )
    return Opened(state=state, size=sum((path.parent / file).stat().st_size for file in files))


def _parts(
    content: Mapping[Any, Any], source: str
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Mapping[str, Any]]]:
    """Return the averaged and the raw state dicts of a checkpoint by entry name, the preferred ones first."""
    ema, raw = EMA_ENTRIES, RAW_ENTRIES
    if _is_state(content.get(LIGHTNING_RAW)) and LIGHTNING_AVERAGING in content:
        ema, raw = ("state_dict", *EMA_ENTRIES), (LIGHTNING_RAW, *RAW_ENTRIES[1:])
    averaged = {name: _inside(content[name]) for name in ema if name in content}
    for name, state in averaged.items():
        if state is None and _has_tensors(content[name]):
            raise RefusedError(
                f"{source} holds averaged (EMA) weights under {name!r} that are not tensors by name; save the averaged "
                f"model's state_dict() there, or give the raw weights in a file of their own"
            )
    found = {name: _inside(content[name]) for name in raw if name in content}
    return _present(averaged), _present(found)


def _present(parts: Mapping[str, Mapping[str, Any] | None]) -> Parts:
    return {name: state for name, state in parts.items() if state is not None}


def _inside(value: Any) -> Mapping[str, Any] | None:
    """Return the state dict in an entry: the entry itself, or the only one in it."""
    if not isinstance(value, Mapping) or _is_state(value):
        return value if _is_state(value) else None
    states = [one for one in value.values() if _is_state(one)]
    return states[0] if len(states) == 1 else None


def _has_tensors(value: Any) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else []
    return any(isinstance(one, Tensor) or (one is not value and _has_tensors(one)) for one in values)


def _classes(content: Mapping[Any, Any]) -> tuple[str, ...] | None:
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list and names else None


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(entry, Tensor | np.ndarray) for name, entry in value.items())
    )


def _plain(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return tensors under names without the prefixes of wrappers."""
    names = list(state)
    for wrapper in WRAPPERS_INSIDE:
        names = [name.replace(wrapper, "") for name in names]
    while all(name.startswith(WRAPPER) for name in names):
        names = [name.removeprefix(WRAPPER) for name in names]
    if len(set(names)) != len(names):
        names = list(state)
    return {name: _tensor(name, value, source) for name, value in zip(names, state.values(), strict=True)}


def _tensor(name: str, value: Any, source: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise RefusedError(
            f"{source} has {name!r} as an array of {value.dtype}, which PyTorch does not know; give it as float32"
        ) from error


def _check_entries(state: Mapping[str, Tensor], path: Path, size: int) -> None:
    """Check that tensors are plain numbers in memory, and declare no more of them than the file holds.

    Raises:
        ValueError: one is not; the text names it.
    """
    if len(state) > MOST_ENTRIES:
        raise RefusedError(_too_many(path, len(state)))
    for name, value in state.items():
        kind = "on the meta device" if value.is_meta else "quantized" if value.is_quantized else None
        kind = kind or (None if value.layout == torch.strided else str(value.layout))
        if kind or value.is_nested:
            raise RefusedError(f"{path} has {shown(name)} {kind or 'nested'}; expected dense tensors: save it as one")
        if value.numel() * value.element_size() > size:
            raise RefusedError(
                f"{path} has {shown(name)} in shape {shape(value)}, more numbers than a file of {size} bytes holds; "
                f"save it with .clone(), or fetch the file again"
            )


def _too_many(path: Path, number: int) -> str:
    return f"{path} has {number} entries; expected at most {MOST_ENTRIES}: save the model's state_dict() alone"


def _start(path: Path) -> bytes:
    check_regular(path, WEIGHTS_WANTED)
    with path.open("rb") as file:
        return file.read(64)


def _damaged(path: Path, error: Exception) -> str:
    # PyTorch's own text goes on with advice to open the file unsafely.
    text = str(error).rpartition("WeightsUnpickler error: ")[2].partition("Please use `torch")[0]
    words = " ".join(text.partition("Check the documentation")[0].split())
    reason = "".join(letter for letter in words if letter.isprintable())[:160] or "it ends too early"
    return f"{path} is damaged or cut short at {path.stat().st_size} bytes ({reason}); fetch or copy it again"


def _strange(path: Path, start: bytes) -> str:
    what, remedy = f"is not a weight file (it begins with {start[:12]!r})", "fetch it again"
    if not start:
        what = "is empty"
    elif start.lstrip().startswith(b"<"):
        what = "holds a web page instead of weights"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file it points to"
    elif start.startswith(b"\x89HDF"):
        what, remedy = "is an HDF5 file, as Keras writes it", "globalvit convert SRC DST.safetensors --to ours reads it"
    elif start.startswith(b"\x80"):
        what = "is a pickle that torch.save did not write, and such a file can run code"
    return f"{path} {what}; expected safetensors or a file of torch.save: {remedy}"
