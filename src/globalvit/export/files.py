"""Writing exported programs, and running what was written."""

import io
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx import OnnxExporterError

from globalvit.export.capture import quiet
from globalvit.export.check import Run
from globalvit.export.graph import Graph

METADATA_FILE = "globalvit.json"
AXES = ("batch", "height", "width")


def require_onnx() -> None:
    """See that the packages which write and run ONNX are here.

    Raises:
        ImportError: one is missing; the text says how to get it.
    """
    try:
        import onnx  # noqa: F401 - all three are tried, for the message
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(f"writing ONNX needs another package ({error}): pip install 'globalvit[export]'") from error


def write_onnx(path: Path, program: ExportedProgram, graph: Graph, metadata: dict[str, Any]) -> None:
    """Write a program as ONNX with named axes; the metadata is there as its properties, all but texts as JSON.

    Raises:
        ValueError: an operator has no counterpart.
    """
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=graph.plan.opset,
                input_names=["images"],
                output_names=list(graph.names),
                external_data=False,
                verbose=False,
            )
    except OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{graph.task.spec.model} cannot be written as ONNX: {reason}; export it as .pt2, or without postprocessing"
        ) from error
    assert made is not None
    _name_axes(made.model, graph)
    made.model.producer_name, made.model.producer_version = "globalvit", str(metadata["globalvit"])
    for name, value in metadata.items():
        made.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    made.save(str(path))


def _name_axes(model: Any, graph: Graph) -> None:
    """Call the open axes what they are, where the exporter numbers symbols."""
    import onnx_ir

    images = model.graph.inputs[0]
    order = (0, 1, 2) if graph.plan.preprocessing == "nhwc" else (0, 2, 3)
    names = {str(images.shape[axis]): name for axis, name in zip(order, AXES, strict=True)}
    names = {symbol: name for symbol, name in names.items() if not symbol.isdigit()}
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names) or "(?!)")
    for value in (*model.graph.inputs, *model.graph.outputs):
        dims = [dim if isinstance(dim, int) else pattern.sub(lambda at: names[at[0]], str(dim)) for dim in value.shape]
        value.shape = onnx_ir.Shape(dims)


def run_onnx(path: Path) -> Run:
    """A function that runs an ONNX file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]

    return run


def write_torch(path: Path, program: ExportedProgram, metadata: dict[str, Any]) -> None:
    """Write a program as torch.export does, with the metadata as JSON in a file inside it."""
    # Else the example's images would be saved, too.
    program.example_inputs = None
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata, indent=2)})
    path.write_bytes(content.getbuffer())


def run_torch(path: Path) -> Run:
    """A function that runs a `.pt2` file with PyTorch."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run
