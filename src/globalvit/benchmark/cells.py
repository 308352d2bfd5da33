"""What is measured: cells of a table, and in each cell the networks that take turns. No torch here.

A cell fixes everything that decides the work: model, mode, precision, batch and image size. Its entries do this work
in turn: the model itself in every way of running that was asked for, and each peer in the same ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Size = tuple[int, int]
MODES = ("inference", "train")
PRECISIONS = ("fp32", "bf16", "fp16")
DEPLOYED = "deployed"
# Of the compiler: nothing, plain, weights as constants, and CUDA graphs.
COMPILERS = ("eager", "compiled", "frozen", "graphs")
WAYS = (*COMPILERS, DEPLOYED, *(f"{DEPLOYED}+{compiler}" for compiler in COMPILERS[1:]))
OURS = "globalvit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One network run in one way.

    Attributes:
        source: `globalvit` or the library a peer comes from.
        model: its name there.
        way: one of `WAYS`.
    """

    source: str
    model: str
    way: str

    @property
    def name(self) -> str:
        """How tables call the network."""
        return self.model if self.source == OURS else f"{self.source}:{self.model}"

    @property
    def is_deployed(self) -> bool:
        """Whether the model is folded for inference first."""
        return self.way.startswith(DEPLOYED)

    @property
    def compiler(self) -> str:
        """One of `COMPILERS`."""
        return "eager" if self.way == DEPLOYED else self.way.removeprefix(f"{DEPLOYED}+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """The work, and who does it.

    Attributes:
        model: one of ours.
        mode: `inference`, a forward pass; `train`, forward, loss, backward and optimizer.
        precision: in inference of weights and images; in training autocast's, over float32 weights.
        batch_size: images of a run.
        image_size: height and width in pixels; None is the model's own.
        entries: ours first.
    """

    model: str
    mode: str
    precision: str
    batch_size: int
    image_size: Size
    entries: tuple[Entry, ...]


def plan(
    models: Sequence[str],
    peers: Mapping[str, Sequence[tuple[str, str]]],
    *,
    modes: Sequence[str],
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    sizes: Mapping[str, Sequence[Size]],
    ways: Sequence[str],
) -> list[Cell]:
    """All cells, in the order of the tables.

    Args:
        models: names of ours.
        peers: of each model, the (source, name) of those it is measured beside.
        modes: of `MODES`.
        precisions: of `PRECISIONS`.
        batch_sizes: images of a run.
        sizes: of each model, the image sizes.
        ways: of `WAYS`; in training those are left out that only inference has.
    """
    return [
        Cell(
            model=model,
            mode=mode,
            precision=precision,
            batch_size=batch_size,
            image_size=size,
            entries=tuple(_entries(model, peers[model], ways_of(mode, ways))),
        )
        for mode, model in product(modes, models)
        for precision, size, batch_size in product(precisions, sizes[model], batch_sizes)
        if ways_of(mode, ways)
    ]


def ways_of(mode: str, ways: Sequence[str]) -> list[str]:
    """The ways that a mode has: weights that are learned can be neither folded nor constants."""
    return [way for way in ways if mode == "inference" or not (way.startswith(DEPLOYED) or way == "frozen")]


def _entries(model: str, peers: Sequence[tuple[str, str]], ways: Sequence[str]) -> Iterator[Entry]:
    ours = [Entry(source=OURS, model=model, way=way) for way in ways]
    yield from ours
    # Only ours can be deployed: beside that stands the peer in the way that is left.
    compilers = dict.fromkeys(entry.compiler for entry in ours)
    for source, name in peers:
        yield from (Entry(source=source, model=name, way=compiler) for compiler in compilers)
