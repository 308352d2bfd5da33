"""What the processes of a run must have in common, and what is known of one that was lost.

Before the first step every process sends its settings, data and source code to the others, once. While they train,
each leaves the number of its last step in the store through which the processes found each other; when one is gone,
the others read there how far it got and why it ended.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

import globalvit
from globalvit.train.fields import TrainConfig

Facts = dict[str, Any]
# Where things lie may differ between machines.
FREE_PER_RANK = ("data_dir", "workers", "output")
MOST_NAMED = 5
# Seconds to wait for the store, whose server may be the process that was lost.
PATIENCE = 3.0
# How PyTorch words the loss of another process; gloo has no class of its own for it.
_LOST_WORDS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")


class LostRankError(ConnectionError):
    """Another process of the run died, failed or does not answer."""


@cache
def code_version() -> str:
    """The package's version and a digest of its Python files."""
    digest, root = blake2b(digest_size=8), Path(globalvit.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{globalvit.__version__}, source {digest.hexdigest()}"


def facts(config: TrainConfig, classes: Sequence[str], counts: Mapping[str, int], step: int) -> Facts:
    """Return what must be the same on every process."""
    settings = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in FREE_PER_RANK}
    numbers = {f"number of {split} images": count for split, count in counts.items()}
    return {"code": code_version(), **settings, "classes": tuple(classes), **numbers, "step": step}


def require_equal(shares: Sequence[Facts]) -> None:
    """Check that the facts of all processes, in rank order, are those of rank 0.

    Raises:
        ValueError: they differ; the text names ranks and facts. It is the same on every process.
    """
    texts = [_texts(own, shares[0]) for own in shares]
    differing = [f"rank {rank}: {'; '.join(own[:MOST_NAMED])}" for rank, own in enumerate(texts) if own]
    if differing:
        more = f"; and {len(differing) - MOST_NAMED} more ranks" if len(differing) > MOST_NAMED else ""
        raise ValueError(
            f"the processes differ from rank 0: {'; '.join(differing[:MOST_NAMED])}{more}; start every process with "
            f"the same command, version and data"
        )


def _texts(own: Facts, main: Facts) -> list[str]:
    names = [name for name in main if own.get(name) != main[name] and name != "classes"]
    texts = [f"{name} {own.get(name)}, not {main[name]}" for name in names]
    return texts + ([_class_text(own["classes"], main["classes"])] if own["classes"] != main["classes"] else [])


def _class_text(own: Sequence[str], main: Sequence[str]) -> str:
    pairs = enumerate(zip_longest(own, main))
    return next(f"class {number} is {mine!r}, not {theirs!r}" for number, (mine, theirs) in pairs if mine != theirs)


class Notes:
    """Short texts of every process about itself, which outlive it.

    Args:
        rank: of this process.
        world: number of processes; one alone has no use for notes.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        # PyTorch gives no public access to the store; without it errors cannot say how far the others got.
        find = getattr(distributed_c10d, "_get_default_store", None)
        self._store = distributed_c10d.PrefixStore("globalvit", find()) if world > 1 and find else None

    def step(self, step: int) -> None:
        """Note a step that this process has finished."""
        self._write("step", str(step))

    def end(self, reason: str) -> None:
        """Note why this process ends early."""
        self._write("end", reason)

    def others(self) -> str:
        """Return what the other processes have noted, in words; waits a few seconds at most."""
        found: list[str] = []
        reader = threading.Thread(target=self._read_others, args=(found,), daemon=True)
        reader.start()
        reader.join(PATIENCE)
        return "; ".join(found) or "nothing is known of the others, rank 0 kept their notes"

    def _write(self, kind: str, text: str) -> None:
        if self._store is not None:
            self._store.set(f"{kind}/{self.rank}", text)

    def _read_others(self, found: list[str]) -> None:
        store = self._store
        if store is None:
            return
        # The reason of an end may be a moment later than the end of the connection.
        threading.Event().wait(PATIENCE / 3)
        try:
            for rank in range(self.world):
                if rank != self.rank:
                    step, end = (self._value(store, f"{kind}/{rank}") for kind in ("step", "end"))
                    last = f"rank {rank} finished step {step}" if step else f"rank {rank} finished no step"
                    found.append(f"{last} and ended: {end}" if end else last)
        except (RuntimeError, OSError):
            # The server of the store is gone.
            return

    def _value(self, store: distributed_c10d.Store, key: str) -> str:
        return store.get(key).decode(errors="replace") if store.check([key]) else ""


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone or does not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST_WORDS)
    )
