"""From a module to a graph that takes any batch, height and width."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols

from globalvit.export.graph import Graph

# Two images: with one, the number would be taken for a constant. The sides are odd and differ, so that neither stands
# for the other, and so large that even the coarsest maps of a detector have several windows. No memory is touched.
EXAMPLE_BATCH = 2
EXAMPLE_SIZE = (1541, 1861)
NOISY = ("onnx_ir", "onnxscript", "torch.onnx")


def capture(graph: Graph) -> ExportedProgram:
    """The graph for open sizes as `graph.plan` says.

    Raises:
        ValueError: a size that should stay open would be bound; the text says by what.
    """
    plan = graph.plan
    height, width = plan.image_size or EXAMPLE_SIZE
    images = graph.blank(EXAMPLE_BATCH if plan.has_open_batch else 1, height, width)
    first = 1 if plan.preprocessing == "nhwc" else 2
    open_axes = {0: plan.has_open_batch, first: plan.image_size is None, first + 1: plan.image_size is None}
    dims = {axis: Dim.DYNAMIC if is_open else Dim.STATIC for axis, is_open in open_axes.items()}
    try:
        # Sizes of one are like any other: what depends on them here is the layout in memory, never the result.
        is_any_size_alike = symbols.patch(backed_size_oblivious=True)  # pyright: ignore[reportAttributeAccessIssue]
        with quiet(), torch.no_grad(), is_any_size_alike:
            program = torch.export.export(graph, (images,), dynamic_shapes=(dims,), strict=False)
    except (RuntimeError, UserError) as error:
        raise ValueError(
            f"{graph.task.spec.model} cannot be exported for {describe(graph)}: {' '.join(str(error).split())}; bind "
            f"the file to one size with image_size"
        ) from error
    _drop_guards(program)
    return program


def describe(graph: Graph) -> str:
    """The sizes that are open, in words."""
    plan = graph.plan
    size = "any size" if plan.image_size is None else f"{plan.image_size[0]}×{plan.image_size[1]} pixels"
    return f"{size}, {'any batch' if plan.has_open_batch else 'one image at a time'}"


def _drop_guards(program: ExportedProgram) -> None:
    """Take away what the example's layout in memory made the graph expect of sizes.

    They say how convolutions store their results, not which results those are; that the file runs at sizes which they
    would refuse, one image and 32 pixels among them, is checked when it is written.
    """
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    getattr(program, "_guards_code", []).clear()
    for symbol in program.range_constraints:
        program.range_constraints[symbol] = ValueRanges(2, int_oo)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' advice to their own developers off the screen."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
