"""Count the files and functions of the package that common tasks enter: `python benchmarks/trace.py`.

A reader who follows a call through the package opens these files and reads these functions. Kernels are those of
PyTorch, and each task runs once before it is counted, so that what is loaded once is left out.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from PIL import Image

import globalvit as gv

PACKAGE = str(Path(gv.__file__).parent)
SIDE = 64


@contextmanager
def entered(found: set[CodeType]) -> Iterator[None]:
    """Collect the functions of the package that are called; comprehensions and lambdas are part of theirs."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            found.add(code)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def tasks(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each task with its name."""
    model = gv.create_model("gcvit_xxtiny", num_classes=3, image_size=SIDE)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {"images": torch.randn(2, 3, SIDE, SIDE), "labels": torch.tensor([0, 2])}
    image, weights = Image.new("RGB", (SIDE, SIDE)), folder / "model.safetensors"
    gv.save_weights(model, weights)

    def train() -> None:
        optimizer.zero_grad()
        model.losses(batch)["loss"].backward()
        optimizer.step()

    yield "forward", lambda: model(batch["images"])
    yield "training step", train
    yield "loading", lambda: gv.open_checkpoint(weights)
    yield "predict", lambda: model.predict(image)


def main() -> int:
    """Print one row per task."""
    with gv.set_kernels("torch"), tempfile.TemporaryDirectory() as folder:
        for name, run in tasks(Path(folder)):
            run()
            found: set[CodeType] = set()
            with entered(found):
                run()
            files = {code.co_filename for code in found}
            print(f"{name:14} {len(files):3} files {len(found):4} functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
