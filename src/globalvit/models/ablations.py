"""The design choices that the GC ViT paper compares with its own, as words to ask for a model with. No torch here.

Paper: arXiv 2206.09959, its ablation of components and its table 5. Window sizes need no word: `window=` chooses them.
The networks are in `models/gcvit_ablated.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from globalvit.closest import suggest

Part = Literal["stem", "downsample", "global blocks", "squeeze-excite"]
# The parts of a network that hold a squeeze-excite as long as they are the paper's.
_HOLD_SQUEEZE_EXCITE: tuple[Part, ...] = ("stem", "downsample", "global blocks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A design that stands in for the paper's.

    Attributes:
        part: what it replaces; one word for each part.
        text: the design, for help pages and tables.
    """

    part: Part
    text: str


CHOICES: dict[str, Choice] = {
    "patch_stem": Choice(part="stem", text="Swin's stem, one 4×4 convolution of stride 4"),
    "conv_pool": Choice(part="downsample", text="a 3×3 convolution and a max-pool between stages"),
    "patch_merging": Choice(part="downsample", text="Swin's patch merging between stages"),
    "local_only": Choice(part="global blocks", text="local windows in every block"),
    "shifted": Choice(part="global blocks", text="Swin's windows, in every second block shifted by half a side"),
    "learned_query": Choice(part="global blocks", text="a learned global query, shared by all images"),
    "no_squeeze_excite": Choice(part="squeeze-excite", text="no squeeze-excite in any branch"),
}


def check_ablation(words: str | Iterable[str]) -> tuple[str, ...]:
    """Design choices in the order of `CHOICES`, each once.

    Args:
        words: keys of `CHOICES`, one by one or in one text between commas.

    Raises:
        ValueError: a word is not known, two stand for the same part, or one has nothing left to change.
    """
    words = set(words.split(",") if isinstance(words, str) else words)
    for word in sorted(words - CHOICES.keys()):
        raise ValueError(
            f"ablation={word!r} is not known.{suggest(word, CHOICES)} There are {', '.join(CHOICES)}; "
            f"sizes of windows are chosen with window="
        )
    chosen = tuple(word for word in CHOICES if word in words)
    by_part: dict[Part, str] = {}
    for word in chosen:
        part = CHOICES[word].part
        if part in by_part:
            raise ValueError(f"ablation={by_part[part]},{word}: both replace the {part}; give one of them")
        by_part[part] = word
    if "squeeze-excite" in by_part and by_part.keys() >= set(_HOLD_SQUEEZE_EXCITE):
        raise ValueError(f"ablation={','.join(chosen)}: no squeeze-excite is left to take out; leave that word out")
    return chosen
