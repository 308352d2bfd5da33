"""`globalvit doctor`: report this machine's hardware and software, and check that the kernels work."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from globalvit.cli import tables
from globalvit.cli.options import parse
from globalvit.console import Progress

if TYPE_CHECKING:
    from globalvit.doctor import Report, Verdict

SUMMARY = "Check this machine: versions, hardware, precision, and every kernel against PyTorch"
DESCRIPTION = (
    "Print what a bug report needs, compare the results and speed of every kernel with PyTorch, and show what is used. "
    "The exit status is 1 if there are problems."
)
GIB = 2**30
WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of `globalvit doctor`."""

    json: bool = field(default=False, metadata={"help": "print everything as JSON"})


def run(argv: Sequence[str], prog: str) -> int:
    """Check the machine; return exit status 1 if there are problems."""
    options = parse(DoctorOptions, argv, prog, DESCRIPTION)
    from globalvit.doctor import examine

    with Progress(1, "examining", is_shown=not options.json) as progress:
        report = examine()
        progress.advance()
    if options.json:
        for line in json.dumps(_finite(report.to_dict()), indent=2).splitlines():
            tables.write_line(line)
    else:
        _show(report)
    return 1 if report.problems else 0


def _show(report: "Report") -> None:
    for name, text in _facts(report):
        tables.write_line(f"{name:<{WIDTH}}{text}")
    if report.verdicts:
        tables.show([_row(one) for one in report.verdicts])
    for note in report.notes:
        tables.write_line(f"note: {note}")
    for problem in report.problems:
        tables.write_line(f"wrong: {problem}")
    tables.write_line(f"{len(report.problems)} problems" if report.problems else "everything works")


def _facts(report: "Report") -> list[tuple[str, str]]:
    versions, cpu, memory = report.versions, report.cpu, report.memory
    libraries = [f"{name} {version}" for name, version in versions.items() if name not in ("globalvit", "system")]
    features = ", ".join(cpu["features"]) or "no relevant vector instructions"
    shared = f", {memory['shared'] / GIB:.1f} GiB shared" if "shared" in memory else ""
    facts = [
        ("globalvit", f"{versions['globalvit']} on {versions['system']}"),
        ("with", ", ".join(libraries)),
        ("CPU", f"{cpu['name']} ({cpu['machine']}), {cpu['cores']} cores, {cpu['threads']} threads: {features}"),
        ("memory", f"{memory['total'] / GIB:.1f} GiB, {memory['available'] / GIB:.1f} GiB free{shared}"),
    ]
    facts += [("limit", f"{name}={value}") for name, value in cpu["limits"].items()]
    facts += [
        ("GPU", f"{gpu['name']}, {gpu['memory'] / GIB:.0f} GiB, capability {gpu['capability']}, CUDA {gpu['cuda']}")
        for gpu in report.gpus
    ]
    facts += [
        (f"on {device}", f"--precision auto is {chosen['name']} ({chosen['reason'].removeprefix('auto: ')})")
        for device, chosen in report.precision.items()
    ]
    facts += [(f"{name} kernels", _in_words(about)) for name, about in report.kernels.items()]
    choices = report.kernels["c"].get("choices", {})
    return facts + [(f"in {dtype}", _choices_in_words(about)) for dtype, about in choices.items()]


def _choices_in_words(about: dict[str, Any]) -> str:
    names = ", ".join(about["pytorch"])
    operations = f"PyTorch for {names}, C for the rest" if names else "C for all operations"
    deployed = {"c": "C", "onednn": "oneDNN", "torch": "PyTorch"}[about["deployed"]]
    return f"{operations}; {deployed} for deployed blocks; {about['origin']}"


def _in_words(about: dict[str, Any]) -> str:
    if not about["is_available"]:
        return f"not used: {about['reason']}"
    return f"{about['variant']}, {about['origin']}" if "variant" in about else "available on request"


def _row(one: "Verdict") -> dict[str, str]:
    return {
        "operation": one.name,
        "kernels": one.kernels,
        "dtype": one.dtype,
        "error": f"{one.error:.1e}",
        "verdict": "right" if one.is_right else "WRONG",
        "ms": tables.number(1e3 * one.seconds, 2),
        "PyTorch ms": tables.number(1e3 * one.torch_seconds, 2),
        "times faster": tables.number(one.speedup, 2),
        "used": "yes" if one.is_used else "no",
    }


def _finite(value: Any) -> Any:
    """Replace infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if value in (float("inf"), float("-inf")) else value
