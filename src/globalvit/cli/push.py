"""`globalvit push`: share a run on the Hugging Face Hub."""

from collections.abc import Sequence

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.jobs.push import PushOptions, push

SUMMARY = "Push a run to the Hugging Face Hub with a model card, private by default"


def run(argv: Sequence[str], prog: str) -> int:
    """Push the run; return the exit status."""
    tables.write_line(f"wrote {push(parse(PushOptions, argv, prog, SUMMARY, positional=('run', 'repo')))}")
    return 0
