"""`globalvit models`: list the available models, with measured and published figures side by side."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from globalvit.cli import complexity, tables
from globalvit.cli.options import parse
from globalvit.closest import suggest
from globalvit.jobs import files
from globalvit.models.systems import SYSTEMS
from globalvit.models.variants import PUBLISHED, as_size, model_names, split_name, unalias, variants
from globalvit.weights import catalog

SUMMARY = "List the models: measured and published sizes, scores, weights and licenses"


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """Options of `globalvit models`."""

    pattern: str = field(
        default="*", metadata={"help": "model names to show, with the wildcards * and ?", "metavar": "PATTERN"}
    )
    json: Path | None = field(default=None, metadata={"help": "write all known figures of the models to this file"})
    measure: bool = field(
        default=False, metadata={"help": "build the models and count parameters and multiply-adds (requires torch)"}
    )
    complexity: bool = field(
        default=False,
        metadata={
            "help": "show how multiply-adds, activations and memory grow with the image size, compared with Swin's "
            f"windows and full self-attention (default model: {complexity.MODEL})"
        },
    )
    image_size: tuple[int, ...] | None = field(
        default=None, metadata={"help": "image side lengths for --complexity, in pixels", "aliases": ("img_size",)}
    )
    plot: Path | None = field(default=None, metadata={"help": "plot the curves of --complexity to this file"})
    csv: Path | None = field(default=None, metadata={"help": "write the table of --complexity to this file"})

    def __post_init__(self) -> None:
        if not self.complexity and (self.image_size or self.plot or self.csv):
            raise ValueError("--image-size, --plot and --csv require --complexity; add it")
        if self.complexity and self.measure:
            raise ValueError("--complexity already counts on the built model; leave out --measure")
        tables.check_plot(self.plot)
        for side in self.image_size or ():
            as_size(side)


def run(argv: Sequence[str], prog: str) -> int:
    """Print the matching models; return the exit status."""
    options = parse(ModelsOptions, argv, prog, SUMMARY, positional=("pattern",))
    if options.complexity:
        return _complexity(options)
    known = [describe(name) for name in matching(options.pattern)]
    if options.measure:
        known = [model | {"measured": measure(model["name"])} for model in known]
    tables.show([row for model in known for row in _rows(model)])
    if options.json:
        files.write_json(options.json, known)
    return 0


def _complexity(options: ModelsOptions) -> int:
    names = [complexity.MODEL] if options.pattern == "*" else matching(options.pattern)
    found = complexity.rows(names, options.image_size or complexity.SIDES)
    complexity.show(found)
    if options.csv:
        complexity.write_csv(options.csv, found)
    if options.json:
        files.write_json(options.json, found)
    if options.plot:
        complexity.plot(options.plot, found)
    return 0


def matching(pattern: str) -> list[str]:
    """Return the names that match a shell-style pattern or contain it, classifiers first.

    Raises:
        ValueError: no name matches; the message gives the closest names.
    """
    pattern = unalias(pattern)
    for known in (variants(), model_names()):
        matched = [name for name in known if fnmatchcase(name, pattern)] or [name for name in known if pattern in name]
        if matched:
            return matched
    near = suggest(pattern, model_names()) or " Leave out the pattern to list all classifiers."
    raise ValueError(f"no model matches {pattern!r}.{near}")


def describe(name: str) -> dict[str, Any]:
    """Return all known figures of a model as plain values, without building it."""
    backbone, head = split_name(name)
    weights = [asdict(record) for record in catalog.records(backbone)]
    about = {"name": name, "image_size": variants()[backbone].image_size, "weights": weights}
    if head is None:
        return about | (asdict(PUBLISHED[name]) if name in PUBLISHED else measure(name))
    system = SYSTEMS.get(name)
    return about | {"backbone": backbone, "head": head} | (asdict(system) if system else {})


def measure(name: str) -> dict[str, float]:
    """Count a model's `params`, and its `gmacs` (10⁹ multiply-adds for one image of the model's default size).

    The model and the image are on torch's meta device, which propagates shapes without computing.
    """
    import torch

    from globalvit.benchmark.complexity import count_macs
    from globalvit.build import create_model

    with torch.device("meta"):
        params = sum(parameter.numel() for parameter in create_model(name).parameters())
    return {"params": params, "gmacs": count_macs(name, variants()[split_name(name)[0]].image_size) / 1e9}


def _rows(model: dict[str, Any]) -> list[dict[str, str]]:
    """Return one row per weight file of a classifier, the first with its figures; one row for any other model."""
    if "head" in model:
        return [_system(model)]
    own = _figures(model)
    rest = dict.fromkeys(own, "")
    weights = [_weights(record) for record in model["weights"]] or [_weights(None)]
    return [(rest if i else own) | row for i, row in enumerate(weights)]


def _figures(model: dict[str, Any]) -> dict[str, str]:
    figures = {
        "model": model["name"],
        "pixels": str(model["image_size"]),
        "params M": tables.number(model["params"] / 1e6, 2),
        "published": _as_printed(model.get("published_params")),
        "GMACs": tables.number(model["gmacs"], 2),
        "published GFLOPs": tables.number(model.get("published_gflops"), 1),
    }
    if "measured" in model:
        figures["params measured"] = str(model["measured"]["params"])
        figures["GMACs measured"] = tables.number(model["measured"]["gmacs"], 3)
    return figures


def _system(model: dict[str, Any]) -> dict[str, str]:
    """Return the row of a segmenter or detector, next to its paper's figures."""
    boxes, masks = (
        ", ".join(f"{score:.1f} ({schedule})" for schedule, score in model.get(key, ())) or "–"
        for key in ("ap_box", "ap_mask")
    )
    figures = {
        "model": model["name"],
        "params M": tables.number(model["params"] / 1e6, 2) if "params" in model else "–",
        "published": _as_printed(model.get("published_params")),
        "mIoU ADE20K": tables.number(model.get("miou"), 1),
        "box AP COCO": boxes,
        "mask AP COCO": masks,
    }
    if "measured" in model:
        figures["params measured"] = str(model["measured"]["params"])
        figures["GMACs measured"] = tables.number(model["measured"]["gmacs"], 3)
    return figures


def _as_printed(figure: float | None) -> str:
    return "–" if figure is None else f"{figure:g}"


def _weights(record: dict[str, Any] | None) -> dict[str, str]:
    if record is None:
        return {"weights": "–", "top-1": "–", "license": "–"}
    return {
        "weights": record["weights"],
        "top-1": tables.number(record["top1"], 1),
        "license": record["license"],
    }
