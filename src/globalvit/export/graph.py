"""What stands in an exported file: a model between optional steps before and after it.

Legend: `B` images · `C` channels · `H W` pixels · `K` classes.
"""

import torch
from torch import Tensor, nn

from globalvit.detectors.found import limits_of
from globalvit.export.plan import Plan
from globalvit.pytorch import copied
from globalvit.tasks.classify import Classifier
from globalvit.tasks.detect import Detector
from globalvit.tasks.task import Task

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Graph(nn.Module):
    """Images → a tuple of tensors, as many as `names`.

    The model is a copy in evaluation mode on the CPU; the one that was given stays as it is.

    Attributes:
        names: of the outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, task: Task, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.task = copied(task).cpu().eval().requires_grad_(False).to(DTYPES[plan.precision])
        values = (task.preprocessing.mean, task.preprocessing.std)
        mean, std = (torch.tensor(one)[:, None, None] for one in values)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.names = _names(task, plan)

    @property
    def inside(self) -> str:
        """What the file does, in words."""
        first = f"normalization of uint8 {self.plan.preprocessing.upper()} images, " if self.plan.preprocessing else ""
        after = ", sigmoid" if self.task.spec.multi_label else AFTER[self.task.kind]
        last = after if self.plan.has_postprocessing else ""
        return f"{first}{self.task.spec.model}{last}"

    def blank(self, batch: int, height: int, width: int) -> Tensor:
        """Empty images of the kind that goes in."""
        channels = self.task.spec.in_channels
        shape = (height, width, channels) if self.plan.preprocessing == "nhwc" else (channels, height, width)
        return torch.zeros(batch, *shape, dtype=torch.float32 if self.plan.preprocessing is None else torch.uint8)

    def noise(self, batch: int, height: int, width: int) -> Tensor:
        """Random images of the kind that goes in, always the same ones."""
        images, generator = self.blank(batch, height, width), torch.Generator().manual_seed(0)
        if self.plan.preprocessing is not None:
            return images.random_(0, 256, generator=generator)
        return images.normal_(generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        if self.plan.preprocessing is not None:
            images_BCHW = images.permute(0, 3, 1, 2) if self.plan.preprocessing == "nhwc" else images
            images = (images_BCHW.float() / 255 - self.mean) / self.std
        found = self.task(images.to(DTYPES[self.plan.precision]))
        outputs = self._after(found, images) if self.plan.has_postprocessing else flat(found)
        return tuple(one.float() if one.is_floating_point() else one for one in outputs)

    def _after(self, found: Tensor | dict[str, list[Tensor]], images_BCHW: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.task, Detector):
            assert isinstance(found, dict)
            size = (images_BCHW.shape[2], images_BCHW.shape[3])
            limits_B14 = limits_of([size], images_BCHW.device)
            threshold, most = self.plan.score_threshold, self.plan.max_detections
            rows, masks_BThw = self.task.find(found, limits_B14, threshold, most=most, is_fixed=True)
            return (*rows, masks_BThw) if masks_BThw is not None else tuple(rows)
        assert isinstance(found, Tensor)
        if isinstance(self.task, Classifier):
            return (self.task.probabilities(found.float()),)
        return (found.argmax(1).to(torch.uint8),)


AFTER = {
    "classify": ", softmax",
    "segment": ", the likeliest class of each pixel",
    "detect": ", decoding and suppression of boxes",
}


def flat(found: Tensor | dict[str, list[Tensor]]) -> tuple[Tensor, ...]:
    """A task's raw outputs in a row."""
    if isinstance(found, Tensor):
        return (found,)
    return tuple(one for maps in found.values() for one in maps)


def _names(task: Task, plan: Plan) -> tuple[str, ...]:
    if not isinstance(task, Detector):
        last = "probabilities" if task.kind == "classify" else "labels"
        return (last if plan.has_postprocessing else "logits",)
    if plan.has_postprocessing:
        return ("boxes", "scores", "labels", "masks") if task.needs_masks else ("boxes", "scores", "labels")
    read = ("rpn_logits", "rpn_deltas") if task.needs_masks else ("logits", "deltas")
    return tuple(f"{name}_{stride}" for name in ("features", *read) for stride in task.neck.strides)
