"""Report of what was loaded, resized, left fresh or dropped."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from globalvit.weights.heads import BACKBONE, CLASSIFIER_WEIGHT

Windows = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What `load_weights` did; `str()` is one paragraph.

    Attributes:
        source: the file, the catalog's name or "the given state dict".
        form: whose names the entries had, in words.
        entry: the part of the checkpoint that was taken, such as `state_dict_ema`; None where it has no parts.
        passed_over: other parts with weights.
        loaded: how many parameters of the model have the source's values now.
        resized_tables: our names of the position tables that were resized.
        windows: the window sides of the source and of the model, stage by stage.
        input_channels: the stem's input channels in the source and in the model where they differ.
        classes: classes of the source (None without such a head) and of the model, where the head is fresh or its
            class-wise layers are.
        heads: names of the source's head and the model's, where they are different ones.
        fresh: our names of the parameters that keep the model's own values, the head's included.
        dropped: the source's names of the entries that were left out.
        is_published: whether they are weights of the catalog.
    """

    source: str
    form: str
    entry: str | None = None
    passed_over: tuple[str, ...] = ()
    loaded: int
    resized_tables: tuple[str, ...] = ()
    windows: tuple[Windows, Windows] = ((), ())
    input_channels: tuple[int, int] | None = None
    classes: tuple[int | None, int] | None = None
    heads: tuple[str, str] | None = None
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    is_published: bool = False

    @property
    def head_is_fresh(self) -> bool:
        """Return whether the head, or its class-wise part, keeps the model's own values."""
        return self.classes is not None

    def __str__(self) -> str:
        sentences = (self._taken(), self._resized(), self._stem(), self._head(), self._fresh(), self._dropped())
        return " ".join(filter(None, sentences))

    def _taken(self) -> str:
        part = f" (its {self.entry})" if self.entry else ""
        others = (
            f"; its {' and '.join(self.passed_over)} {_were(self.passed_over)} passed over" if self.passed_over else ""
        )
        return f"Loaded {self.loaded} parameters from {self.source}{part}, which has {self.form}{others}."

    def _resized(self) -> str:
        before, after = (", ".join(map(str, side)) for side in self.windows)
        tables = self.resized_tables
        return f"{len(tables)} position tables were resized from windows {before} to {after}." if tables else ""

    def _stem(self) -> str:
        if self.input_channels is None:
            return ""
        return "The stem was adapted from {} to {} input channels.".format(*self.input_channels)

    def _head(self) -> str:
        if self.classes is None:
            return ""
        source, model = self.classes
        if self.heads is not None:
            return "The head is fresh: that of the weights is {}, that of the model {}.".format(*self.heads)
        has = "have no head" if source is None else f"have {source} classes"
        parts = [name for name in self.fresh if not name.startswith(BACKBONE)]
        is_whole = source is None or CLASSIFIER_WEIGHT in parts
        fresh = "The head is" if is_whole else f"The layers of the classes, {kinds(parts)}, are"
        return f"{fresh} fresh: the weights {has}, the model has {model}."

    def _fresh(self) -> str:
        others = [name for name in self.fresh if name.startswith(BACKBONE)]
        return f"{len(others)} other parameters are fresh: {kinds(others)}." if others else ""

    def _dropped(self) -> str:
        return f"Left out by name: {len(self.dropped)} entries, {kinds(self.dropped)}." if self.dropped else ""


def _were(names: tuple[str, ...]) -> str:
    return "was" if len(names) == 1 else "were"


def kinds(names: Iterable[str]) -> str:
    """Group names that differ only in numbers, such as `levels.*.blocks.*.attn.relative_position_index (31)`."""
    counts = Counter(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return ", ".join(f"{kind} ({count})" if count > 1 else kind for kind, count in counts.items())
