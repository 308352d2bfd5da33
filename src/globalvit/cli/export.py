"""`globalvit export`: export a trained model for other programs, compared with the model before the file is kept."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.jobs.export import ExportOptions, export

if TYPE_CHECKING:
    from globalvit.export import Check, ExportReport

SUMMARY = "Export a model to ONNX or torch.export, for any batch and image size, checked against the model"


def run(argv: Sequence[str], prog: str) -> int:
    """Export the model and print a report; return the exit status."""
    report = export(parse(ExportOptions, argv, prog, SUMMARY))
    tables.show([_row(check) for check in report.checks])
    for line in _lines(report):
        tables.write_line(line)
    return 0


def _row(check: "Check") -> dict[str, str]:
    return {
        "batch": str(check.batch),
        "height": str(check.height),
        "width": str(check.width),
        "largest difference": f"{check.difference:.1e}",
        "file ms": tables.number(1000 * check.seconds, 1),
        "PyTorch fp32 ms": tables.number(1000 * check.eager_seconds, 1),
    }


def _lines(report: "ExportReport") -> Iterator[str]:
    yield f"wrote {report.path}, {report.size / 2**20:.1f} MiB: {report.inside}"
    yield f"input: {report.sizes}, {report.metadata['input']}; output: {', '.join(report.outputs)}"
    if report.objects == 0:
        yield (
            "no boxes were compared, since the random test images had no detections; lower --score-threshold "
            "to compare some"
        )
    yield f"license of the weights: {report.metadata['weights_license']}"
