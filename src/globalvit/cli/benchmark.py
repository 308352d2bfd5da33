"""`globalvit benchmark`: speed and memory of models, compared with other networks in the same process."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from globalvit.benchmark.cells import MODES, PRECISIONS, WAYS, Cell, Size, plan, ways_of
from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.closest import suggest
from globalvit.console import Progress
from globalvit.hardware import DeviceChoice
from globalvit.jobs import files
from globalvit.jobs.opening import about
from globalvit.models.variants import as_size
from globalvit.train.fields import DEVICE_HELP

if TYPE_CHECKING:
    from globalvit.benchmark.measure import Result

logger = logging.getLogger(__name__)
SUMMARY = "Measure images per second, latency and memory, compared with other networks in the same process"
WORK, RUNNING, FILES = "work", "running", "files"


def _several(group: str, text: str, metavar: str | None = None) -> dict[str, Any]:
    """Return the metadata of an option that may be given several times."""
    return about(group, text) | {"adds": True} | ({"metavar": metavar} if metavar else {})


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Options of `globalvit benchmark`."""

    model: tuple[str, ...] = field(
        default=("gcvit_tiny",), metadata=_several(WORK, "model names or patterns such as 'gcvit_*'", "NAME,...")
    )
    peer: tuple[str, ...] = field(
        default=(),
        metadata=_several(
            WORK, "networks to compare with: timm:NAME, or auto for timm's model of the same name", "timm:NAME,..."
        ),
    )
    mode: tuple[str, ...] = field(default=MODES, metadata=_several(WORK, " or ".join(MODES), "MODE,..."))
    batch_size: tuple[int, ...] = field(default=(1, 8), metadata=_several(WORK, "images per batch"))
    image_size: tuple[int, ...] | None = field(
        default=None,
        metadata=_several(WORK, "image side lengths in pixels (default: each model's own)")
        | {"aliases": ("img_size",)},
    )
    precision: tuple[str, ...] = field(
        default=("auto",),
        metadata=_several(
            WORK,
            "auto, fp32, bf16 or fp16: dtype of weights and images in inference, of autocast in training; auto "
            "measures fp32 and the precision that train would choose",
            "TYPE,...",
        ),
    )
    compile: tuple[str, ...] = field(
        default=("eager",),
        metadata=_several(
            WORK,
            "eager; compiled; frozen, with weights as constants; graphs, with CUDA graphs; deployed, our models folded "
            "for inference; deployed+compiled and so on; frozen and deployed are inference only",
            "WAY,...",
        ),
    )
    window: Literal["own", "ratio"] | None = field(
        default=None, metadata=about(WORK, "GC ViT's windows: the variant's own size, or a ratio of the image size")
    )
    kernels: Literal["auto", "torch", "c", "triton"] = field(
        default="auto", metadata=about(WORK, "kernels for our models; torch uses only PyTorch's operators")
    )

    device: DeviceChoice = field(default="auto", metadata=about(RUNNING, f"device to measure on; {DEVICE_HELP}"))
    threads: int | None = field(default=None, metadata=about(RUNNING, "CPU threads (default: PyTorch's)"))
    seconds: float = field(
        default=3.0, metadata=about(RUNNING, "time to measure each row for, with at least three repeats")
    )
    repeats: int | None = field(default=None, metadata=about(RUNNING, "number of repeats, instead of --seconds"))
    json: Path | None = field(
        default=None, metadata=about(FILES, "write settings, machine information and all timings to this file")
    )
    csv: Path | None = field(default=None, metadata=about(FILES, "write the table to this file"))
    plot: Path | None = field(
        default=None, metadata=about(FILES, "plot images per second to this file: .png, .pdf or .svg")
    )

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("precision", ("auto", *PRECISIONS)), ("compile", WAYS)):
            _check_words(name, getattr(self, name), known)
        for name, least in (("batch_size", 1), ("threads", 1), ("repeats", 1)):
            _check_least(name, getattr(self, name), least)
        for side in self.image_size or ():
            as_size(side)
        if not self.seconds > 0:
            raise ValueError(f"--seconds {self.seconds:g} must be more than 0")
        for mode in self.mode:
            if not ways_of(mode, self.compile):
                raise ValueError(
                    f"--compile {','.join(self.compile)} is for inference only, since weights are constant; "
                    f"add eager, compiled or graphs, or use --mode inference"
                )
        tables.check_plot(self.plot)


def _check_words(name: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    for word in given or ():
        if word not in known:
            raise ValueError(f"--{name} {word!r} is not one of {', '.join(known)}.{suggest(word, known)}")


def _check_least(name: str, given: int | tuple[int, ...] | None, least: int) -> None:
    for value in given if isinstance(given, tuple) else () if given is None else (given,):
        if value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def run(argv: Sequence[str], prog: str) -> int:
    """Measure, print and write the results; return the exit status."""
    options = parse(BenchmarkOptions, argv, prog, SUMMARY)
    from globalvit.benchmark import machine, report
    from globalvit.hardware import choose_device
    from globalvit.models.ops import set_kernels

    device = choose_device(options.device)
    cells = _cells(options, device)
    with set_kernels(options.kernels), machine.computing(device, options.threads):
        description = machine.describe(device)
        tables.write_line(machine.in_a_line(description))
        results = _measure(cells, options, device)
    plain = report.rows(results, device)
    _show(plain, results, options)
    written = {
        "command": shlex.join([*prog.split(), *argv]),
        "settings": asdict(options),
        "machine": description,
        "rows": plain,
    }
    _write(written, options)
    if results and not any(result.seconds for result in results):
        raise ValueError(f"nothing could be measured: {results[0].error}")
    return 0


def _cells(options: BenchmarkOptions, device: str) -> list[Cell]:
    """Return what to measure; errors are raised before anything runs."""
    from globalvit.benchmark import networks

    if device != "cuda" and any("graphs" in way for way in options.compile):
        raise ValueError(f"--compile graphs requires CUDA, but the device is {device}; use --compile compiled")
    models = networks.expand(options.model)
    peers = {model: networks.peers_of(model, options.peer) for model in models}
    for model in models if options.peer else ():
        if not peers[model]:
            logger.warning("timm has no %s to compare with; choose another network with --peer timm:NAME", model)
    sizes: dict[str, Sequence[Size]] = {
        model: [as_size(side) for side in options.image_size or ()] or [networks.own_size(model)] for model in models
    }
    return plan(
        models,
        peers,
        modes=options.mode,
        precisions=_precisions(options.precision, device),
        batch_sizes=options.batch_size,
        sizes=sizes,
        ways=options.compile,
    )


def _precisions(given: Sequence[str], device: str) -> tuple[str, ...]:
    """Return the precisions to measure, each once, with `auto` written out."""
    from globalvit.hardware import choose_precision

    automatic = ("fp32", choose_precision("auto", device).name)
    return tuple(dict.fromkeys(name for word in given for name in (automatic if word == "auto" else (word,))))


def _measure(cells: Sequence[Cell], options: BenchmarkOptions, device: str) -> "list[Result]":
    from globalvit.benchmark.measure import Budget, measure

    with Progress(sum(len(cell.entries) for cell in cells), "measuring") as progress:
        return measure(
            cells,
            device,
            budget=Budget(seconds=options.seconds, repeats=options.repeats),
            window=options.window,
            advance=progress.advance,
        )


def _show(plain: Sequence[dict[str, Any]], results: "Sequence[Result]", options: BenchmarkOptions) -> None:
    from globalvit.benchmark import report

    shown = [report.speed_table(plain, mode) for mode in options.mode]
    shown.append(("fastest setting of each network", report.best_rows(results)))
    for title, texts in shown:
        if texts:
            # Rich would wrap a table title to the width of the columns.
            tables.write_line(title)
            tables.show(texts)


def _write(written: dict[str, Any], options: BenchmarkOptions) -> None:
    from globalvit.benchmark import report

    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in written["settings"].items()}
        files.write_json(options.json, written | {"settings": settings})
    if options.csv:
        files.write_csv(options.csv, *report.csv_table(written["rows"]))
    if options.plot:
        from globalvit.benchmark.machine import in_a_line
        from globalvit.benchmark.plot import plot

        plot(options.plot, written["rows"], in_a_line(written["machine"]))
