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

SUMMARY = "Open a local web page that shows classes, boxes, masks, attention and Grad-CAM of an image"
DESCRIPTION = SUMMARY + (
    ". The page lists the given models, the runs in --runs, published weights already downloaded, and small models "
    "that it can train in a minute or two. Nothing leaves this machine."
)
PAGE = "page"
MIB = 2**20
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of `globalvit demo`."""

    checkpoint: tuple[Path, ...] = field(
        default=(),
        metadata=about(MODEL, "weight file, checkpoint folder or run folder; may be given several times")
        | {"adds": True, "metavar": "PATH"},
    )
    model: tuple[str, ...] = field(
        default=(),
        metadata=about(MODEL, "model name, to download its published weights; may be given several times")
        | {"adds": True, "metavar": "NAME"},
    )
    runs: Path | None = field(
        default=None, metadata=about(MODEL, "folder of training runs to list (default: runs, if it exists)")
    )
    quick: Literal["digits", "shapes", "shapes_detection"] | None = field(
        default=None, metadata=about(MODEL, "start by training a small model on a built-in data set")
    )
    device: Literal["auto", "cpu", "cuda"] = field(
        default="auto", metadata=about(MODEL, "auto uses a GPU if there is one")
    )
    host: str = field(
        default="127.0.0.1", metadata=about(PAGE, "address to listen on; 0.0.0.0 allows access from other machines")
    )
    port: int = field(default=7860, metadata=about(PAGE, "port to listen on; 0 picks any free port"))
    max_upload_mb: float = field(
        default=20, metadata=about(PAGE, "maximum size of an image file in MiB") | {"metavar": "MIB"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} must be between 0 and 65535")
        if self.runs is not None and not self.runs.is_dir():
            raise ValueError(
                f"--runs: expected a folder of globalvit train runs, got {self.runs}, which is not a folder"
            )
        if not 0 < self.max_upload_mb <= 1024:
            raise ValueError(f"--max-upload-mb {self.max_upload_mb:g} must be more than 0 and at most 1024")


def run(argv: Sequence[str], prog: str) -> int:
    """Serve the page until Ctrl-C."""
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
    """Return the models to list: those given, then runs, then published weights already downloaded.

    Raises:
        FileNotFoundError: a checkpoint does not exist.
        ValueError: a model is unknown.
        OSError: its weights cannot be downloaded.
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
    """Check that Gradio is installed before anything slow happens.

    Raises:
        ImportError: Gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError(
            "the demo requires gradio, which is not installed; run: pip install 'globalvit[demo]'", name="gradio"
        )
