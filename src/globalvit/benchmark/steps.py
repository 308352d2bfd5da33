"""One run of a network: a forward pass, or a training step.

Legend: `B` images · `C` channels · `H W` pixels · `K` classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.optim import Optimizer

from globalvit.benchmark.cells import Cell, Entry
from globalvit.models.variants import Kind
from globalvit.tasks.task import Batch, Task
from globalvit.train.fields import TrainConfig
from globalvit.train.optim import create_optimizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHANNELS = 3
OBJECTS = 8
Call = Callable[[Tensor], Any]


class Step(ABC):
    """One run of `module`, which it moves to the device; call it as often as needed."""

    def __init__(self, module: nn.Module, cell: Cell, entry: Entry, device: str) -> None:
        self.module = module.to(device)
        self.cell = cell
        self.compiler = entry.compiler
        self.device = device
        self.images_BCHW = images(cell).to(device)
        self._weights = _bytes(chain(module.parameters(), module.buffers()))

    @abstractmethod
    def __call__(self) -> None:
        """Run once; the device may still be busy afterwards."""

    @property
    def state_bytes(self) -> int:
        """Bytes of parameters and buffers, and of what else lasts from run to run."""
        return self._weights

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """The settings of the compiler while the first runs build what they need."""
        if self.compiler == "eager":
            yield
            return
        from torch._inductor import config

        with config.patch(freezing=self.compiler == "frozen"):
            yield


class Inference(Step):
    """A forward pass; weights and images are of the cell's precision, and the model is deployed where that is asked."""

    def __init__(self, module: nn.Module, cell: Cell, entry: Entry, device: str) -> None:
        dtype = DTYPES[cell.precision]
        super().__init__(module.eval().to(dtype), cell, entry, device)
        self.images_BCHW = self.images_BCHW.to(dtype)
        if entry.is_deployed:
            # Last, since weights are laid out for their type and device.
            assert isinstance(self.module, Task)
            self.module = self.module.deploy()
        self.forward = compiled(self.module, self.compiler)

    def __call__(self) -> None:
        """See `Step`."""
        # Constant weights are only made of what torch knows will have no gradient, which both of these say.
        with torch.inference_mode():
            self.forward(self.images_BCHW)


class Training(Step):
    """Forward, loss, backward, AdamW; autocast over float32 weights, with scaled gradients in fp16."""

    def __init__(self, module: nn.Module, cell: Cell, entry: Entry, device: str) -> None:
        super().__init__(module.train(), cell, entry, device)
        self.batch = targets(self.module, self.images_BCHW)
        self.losses = self._losses()
        self.optimizer = _optimizer(self.module, cell.model)
        self.scaler = torch.amp.GradScaler(device, enabled=cell.precision == "fp16")

    def __call__(self) -> None:
        """See `Step`."""
        dtype = DTYPES[self.cell.precision]
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            loss = self.losses()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    @property
    def state_bytes(self) -> int:
        """Parameters, buffers, and what the optimizer remembers."""
        kept = (value for state in self.optimizer.state.values() for value in state.values())
        return super().state_bytes + _bytes(value for value in kept if isinstance(value, Tensor))

    def _losses(self) -> Callable[[], Tensor]:
        """Return what gives the loss: cross-entropy of classifiers, peers too; the own losses of other tasks."""
        if _kind(self.module) != "classify":
            return self._own_losses()
        forward = compiled(self.module, self.compiler)
        return lambda: F.cross_entropy(forward(self.images_BCHW).float(), self.batch["labels"])

    def _own_losses(self) -> Callable[[], Tensor]:
        assert isinstance(self.module, Task)
        task = self.module
        forward = compiled(type(task.backbone).forward.__get__(task.backbone), self.compiler)

        def losses() -> Tensor:
            # The losses call the backbone by themselves, and of them only the backbone is compiled.
            task.backbone.forward = forward
            try:
                return task.losses(self.batch)["loss"]
            finally:
                del task.backbone.forward

        return losses


def make_step(module: nn.Module, cell: Cell, entry: Entry, device: str) -> Step:
    """The run that a cell asks for."""
    return (Inference if cell.mode == "inference" else Training)(module, cell, entry, device)


def compiled(call: Call, compiler: str) -> Call:
    """A call under one of `COMPILERS`; what is compiled is shared with no other call."""
    if compiler == "eager":
        return call

    def forward(images_BCHW: Tensor) -> Any:
        return call(images_BCHW)

    # torch keeps compiled code by code object. With one of its own, no network runs what was compiled for another.
    own = FunctionType(forward.__code__.replace(), globals(), closure=forward.__closure__)
    return torch.compile(own, mode="reduce-overhead" if compiler == "graphs" else None, dynamic=False)


def images(cell: Cell) -> Tensor:
    """The images that every network of a cell gets: normal noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(cell.batch_size, CHANNELS, *cell.image_size, generator=generator)


def targets(module: nn.Module, images_BCHW: Tensor) -> Batch:
    """A training batch of these images with made-up ground truth: labels, or labels of pixels, or boxes and masks."""
    kind = _kind(module)
    classes = module.spec.num_classes if isinstance(module, Task) else 1000
    B, _, H, W = images_BCHW.shape
    numbers = torch.arange(B * H * W, device=images_BCHW.device)
    if kind == "classify":
        return {"images": images_BCHW, "labels": numbers[:B] % classes}
    if kind == "segment":
        return {"images": images_BCHW, "labels": (numbers // W % classes).view(B, H, W)}
    return {"images": list(images_BCHW)} | _objects(images_BCHW, classes)


def _kind(module: nn.Module) -> Kind:
    """The kind of task; peers classify."""
    return module.kind if isinstance(module, Task) else "classify"


def _objects(images_BCHW: Tensor, classes: int) -> Batch:
    """The same boxes in every image, side by side and half as high as it, with masks that fill them."""
    B, _, H, W = images_BCHW.shape
    left = torch.arange(OBJECTS) * W / OBJECTS
    corners = [left, torch.full_like(left, H / 4), left + W / OBJECTS, torch.full_like(left, 3 * H / 4)]
    boxes_N4 = torch.stack(corners, 1)
    masks_NHW = torch.zeros(OBJECTS, H, W, dtype=torch.bool)
    for mask_HW, (x0, y0, x1, y1) in zip(masks_NHW, boxes_N4.round().int().tolist(), strict=True):
        mask_HW[y0:y1, x0:x1] = True
    one = {"boxes": boxes_N4, "labels": torch.arange(OBJECTS) % classes, "masks": masks_NHW}
    return {key: [value.to(images_BCHW.device)] * B for key, value in one.items()}


def _optimizer(module: nn.Module, model: str) -> Optimizer:
    """Training's own optimizer for ours, and the same one in timm's groups for peers."""
    config = TrainConfig(model=model)
    if isinstance(module, Task):
        return create_optimizer(module, config)
    return create_optimizer_v2(module, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
