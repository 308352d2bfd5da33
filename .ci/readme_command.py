"""Print a set-up command of README.md: the one line of the ```bash block under `<!-- setup:NAME -->`."""

import re
import sys
from pathlib import Path


def command(readme: str, name: str) -> str:
    """The command marked `name` in the page's text.

    Raises:
        ValueError: there is not exactly one such block, or it is not one line.
    """
    blocks = re.findall(rf"^<!-- *setup:{name} *-->\s*\n```bash\n(.*?)\n```$", readme, re.M | re.S)
    if len(blocks) != 1 or "\n" in blocks[0]:
        raise ValueError(f"README.md must hold one ```bash block of one line under <!-- setup:{name} -->; got {blocks}")
    return blocks[0]


if __name__ == "__main__":
    sys.stdout.write(command(Path("README.md").read_text(encoding="utf-8"), sys.argv[1]) + "\n")
