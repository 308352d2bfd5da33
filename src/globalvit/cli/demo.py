"""`globalvit demo`: a local web page to try models on."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from globalvit.cli.options import parse
from globalvit.jobs.opening import MODEL, about

if TYPE_CHECKING:
    from globalvit.demo.shelf import Choice

SUMMARY = "A local web page: drop an image, see classes, boxes, masks, attention and Grad-CAM"
DESCRIPTION = SUMMARY + (
    ". On offer are the models given here, the runs in --runs, published weights downloaded before, and small models "
    "that the page trains in a minute or two. Nothing leaves this machine."
)
PAGE = "page"
MIB = 2**20
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `globalvit demo` is asked for."""

    checkpoint: tuple[Path, ...] = field(
        default=(),
        metadata=about(MODEL, "weight file, checkpoint folder or run folder; may be given several times")
        | {"adds": True, "metavar": "PATH"},
    )
    model: tuple[str, ...] = field(
        default=(),
        metadata=about(MODEL, "name of a model with published weights, which are fetched; may be given several times")
        | {"adds": True, "metavar": "NAME"},
    )
    runs: Path | None = field(
        default=None, metadata=about(MODEL, "folder whose runs are offered (default: runs, if it exists)")
    )
    quick: Literal["digits", "shapes", "shapes_detection"] | None = field(
        default=None, metadata=about(MODEL, "begin with training a small model on a set that is built in")
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata=about(MODEL, "auto takes a GPU where there is one")
    )
    host: str = field(default="127.0.0.1", metadata=about(PAGE, "address to listen at; other machines reach 0.0.0.0"))
    port: int = field(default=7860, metadata=about(PAGE, "port to listen at; 0 takes any that is free"))
    max_upload_mb: float = field(default=20, metadata=about(PAGE, "largest image file in MiB") | {"metavar": "MIB"})

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} must be between 0 and 65535")
        if self.runs is not None and not self.runs.is_dir():
            raise ValueError(f"--runs {self.runs} is not a folder; expected one that holds runs of globalvit train")
        if not 0 < self.max_upload_mb <= 1024:
            raise ValueError(f"--max-upload-mb {self.max_upload_mb:g} must be more than 0 and at most 1024")


def run(argv: Sequence[str], prog: str) -> int:
    """Show the page until Ctrl-C."""
    options = parse(DemoOptions, argv, prog, DESCRIPTION)
    _require_gradio()
    from globalvit.demo.server import serve
    from globalvit.hardware import choose_device

    serve(
        offered(options),
        host=options.host,
        port=options.port,
        device=choose_device(options.device),
        most_bytes=round(options.max_upload_mb * MIB),
        lesson=options.quick,
    )
    return 0


def offered(options: DemoOptions) -> list["Choice"]:
    """The models on offer: those that were given, then runs, then published weights that were downloaded before.

    Raises:
        FileNotFoundError: a checkpoint is not there.
        ValueError: a model is not known.
        OSError: its weights cannot be fetched.
    """
    from globalvit.demo import shelf
    from globalvit.weights import catalog
    from globalvit.weights.download import download

    choices = [shelf.of_checkpoint(path) for path in options.checkpoint]
    for name in options.model:
        choice = shelf.of_model(name)
        assert choice.model is not None
        assert choice.weights is not None
        download(catalog.find(choice.model, choice.weights))
        choices.append(choice)
    return [*choices, *shelf.of_runs(options.runs or RUNS), *shelf.of_catalog()]


def _require_gradio() -> None:
    """Say what is missing before anything slow happens.

    Raises:
        ImportError: Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("the page needs gradio, which is not installed: pip install 'globalvit[demo]'", name="gradio")
