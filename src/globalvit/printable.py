"""Text that is safe on a terminal and in a drawing, whatever the names of files and classes contain."""

import re

# Control characters, separators of lines, marks that turn the direction of text, and bytes that are not UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return `text` on one line, with unsafe characters as escapes such as `\n` and `\udce9`."""
    return _UNSAFE.sub(lambda found: repr(found[0])[1:-1], text)
