"""Wording that this project avoids: counts per file may only fall, and new files have none.

After rewording, `python tests/test_language.py` writes the lower counts to `tests/language.json`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTS = Path(__file__).with_name("language.json")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".html", ".js", ".css", ".c", ".h", ".ipynb", ".sh", ""}
_STEMS = (
    "optim|normal|initial|real|general|summar|organ|recogn|special|token|vector|visual|serial|minim|maxim|util|anal"
)
# Phrase → what to write instead.
AVOIDED = {
    r"label pictures?": "mask, label map",
    r"pictures?": "image",
    r"truths?(?<!ground truth)(?<!ground-truth)(?<!ground_truth)": "ground truth",
    r"lacks?|lacking": "is missing, has no",
    r"besides": "also, beside",
    r"anew": "again",
    r"mends?|mended|mendable": "fix",
    r"unless given": "default: …",
    r"means nothing (?:for|with|to)": "requires …",
    r"(?<!there )(?:is|are) no (?!longer|more|faster|slower|worse|better)": "is not a …; unknown …",
    r"came for|came; expected": "expected …, got …",
    r"told": "named, given",
    r"by lot": "at random",
    r"at the (?:most|least)": "at most, at least",
    r"to be had|at hand": "available",
    r"stands? there": "appears",
    r"loader process(?:es)?": "worker",
    r"likewise\.|the same for": "write it out",
    r"(?:a|one) (?:row|line|folder|image|file|class|channel|token|pixel|step|epoch|second) an? \w+": "one … per …",
    r"unlike|whatever it (?:is|was)": "name the difference",
    r"(?:un)?licen[c]es?d?": "license",
    r"colou[r]s?(?:ed|ing|ful)?": "color",
    r"grey\w*": "gray",
    r"neighbou[r]\w*|behaviou[r]\w*|favou[r]\w*": "neighbor, behavior, favor",
    r"catalogu[e]s?": "catalog",
    r"cent[r]e[sd]?|met[r]es?": "center, meter",
    rf"(?:{_STEMS})[i]s(?:e[ds]?|er|ers|ing|ation|ations)": "-ize",
    r"label[l]ed|label[l]ing|model[l]ed|model[l]ing|travel[l]\w+|cancel[l]ed": "labeled, modeled",
}
_PATTERNS = [re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for pattern in AVOIDED]
_WORDS_ARE_DATA = {"tests/test_language.py", "tests/language.json", "LICENSE", "NOTICE"}


def found_in(text: str) -> list[str]:
    """Return the phrases of a text that are to be avoided; a part of a longer phrase counts once."""
    spans: list[tuple[int, int]] = []
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if not any(start <= match.start() and match.end() <= end for start, end in spans):
                spans.append(match.span())
    return [text[start:end] for start, end in spans]


def count() -> dict[str, int]:
    """Return how many avoided phrases each text file under version control has, where it has any."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    counts = {}
    for name in sorted(filter(None, listed.stdout.split("\0"))):
        path = ROOT / name
        if path.suffix in SUFFIXES and name not in _WORDS_ARE_DATA and path.is_file():
            number = len(found_in(path.read_text(encoding="utf-8", errors="ignore")))
            if number:
                counts[name] = number
    return counts


def test_counts_of_avoided_phrases_only_fall():
    allowed, counts = json.loads(COUNTS.read_text()), count()
    more = {}
    for name, number in counts.items():
        if number > allowed.get(name, 0):
            phrases = sorted(set(found_in((ROOT / name).read_text(encoding="utf-8"))))
            more[name] = f"{number} avoided phrases, at most {allowed.get(name, 0)} are allowed: {phrases}"
    assert not more, more
    fewer = {name: number for name, number in allowed.items() if counts.get(name, 0) < number}
    assert not fewer, f"fewer than {COUNTS.name} says; run python tests/test_language.py: {sorted(fewer)}"


def test_phrases_are_found():
    text = "A picture that lacks colour is no label picture; ground truth and a folder a class are told."
    assert sorted(found_in(text)) == [
        "a folder a class",
        "colour",
        "is no ",
        "label picture",
        "lacks",
        "picture",
        "told",
    ]


if __name__ == "__main__":
    COUNTS.write_text(json.dumps(count(), indent=1) + "\n")
    sys.stdout.write(f"{sum(count().values())} in {len(count())} files\n")
