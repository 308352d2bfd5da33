"""Multiply-adds, activations and memory of classifiers at any image size, counted on torch's meta device.

Nothing is computed: the model and the image have shapes only. Convolutions, Linears and matrix products count; norms,
activation functions and resizing do not, as in torch's `FlopCounterMode`. With H×W tokens of C channels and windows of
w² tokens, an attention takes

- local (Swin's W-MSA, arXiv 2103.14030, equation 2): 4 HW C² + 2 w² HW C multiply-adds,
- global (GC ViT): 3 HW C² + 2 w² HW C, since its queries are pooled once for all blocks of a stage,
- full self-attention (equation 1 there): 4 HW C² + 2 (HW)² C,

where windows do not divide the grid with H and W of the products, not of the projections, rounded up to whole windows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from globalvit.build import create_model
from globalvit.models.gcvit import WindowAttention
from globalvit.models.gcvit_ablated import NoQuery
from globalvit.models.gpvit import StripeAttention
from globalvit.models.variants import GCViTConfig, GPViTConfig, Size, variants

# `own`: the network as it is; `swin`: local windows in all blocks of GC ViT and no global query; `full`: full
# self-attention in place of all attention in windows or stripes.
AttentionKind = Literal["own", "swin", "full"]
FLOAT32_BYTES = 4
_KINDS_OF: dict[type, tuple[AttentionKind, ...]] = {GCViTConfig: ("own", "swin", "full"), GPViTConfig: ("own", "full")}
# Modules whose work is attention's, of either family; the MLP of a scatter is not.
_ATTENTION = re.compile(r"\.(attention|global_query|gather|mix|scatter)$")
_NOT_ATTENTION = re.compile(r"\.scatter\.mlp$")
# Operation → positions of the activations among its arguments; the others are weights and biases.
_PRODUCTS = {
    torch.ops.aten.convolution: (0,),
    torch.ops.aten.addmm: (1,),
    torch.ops.aten.mm: (0,),
    torch.ops.aten.bmm: (0, 1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Complexity:
    """The sum over a network's layers, for one image.

    Attributes:
        macs: multiply-adds.
        attention_macs: of these, those of attention, with its projections and global queries.
        activations: elements that all layers write.
        memory: bytes in float32 that the largest layer reads and writes, attention's logits written out.
        padding_share: part of the multiply-adds that is spent on the padding of windows.
    """

    macs: int
    attention_macs: int
    activations: int
    memory: int
    padding_share: float


class FullAttention(nn.Module):
    """Self-attention over all tokens of a grid, in place of attention in windows or stripes."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor, *_: Any) -> Tensor:
        """(B, H, W, C) → (B, H, W, C); what other attention gets as well is not needed."""
        qkv = self.qkv(x_BHWC.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        q_BhNd, k_BhNd, v_BhNd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out_BhNd = (q_BhNd @ k_BhNd.transpose(-2, -1)).softmax(-1) @ v_BhNd
        return self.proj(out_BhNd.transpose(1, 2).reshape(x_BHWC.shape))


class Traffic(TorchDispatchMode):
    """Records the elements of activations that each convolution and matrix product reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[tuple[int, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (places := _PRODUCTS.get(func.overloadpacket)) is not None:
            self.moved.append((sum(args[place].numel() for place in places), out.numel()))
        return out


def kinds_of(name: str) -> tuple[AttentionKind, ...]:
    """The attentions that a network can be counted with; one of an extension, with its own only."""
    return _KINDS_OF.get(type(variants()[name]), ("own",))


def complexity(name: str, image_size: Size, kind: AttentionKind = "own") -> Complexity:
    """Count what a classifier takes for one image.

    Args:
        name: a classifier.
        image_size: (height, width) in pixels; GC ViT's windows follow it as in `create_model`.
        kind: the attention.

    Raises:
        ValueError: `kind` is not one of `kinds_of(name)`.
    """
    if kind not in kinds_of(name):
        raise ValueError(f"{name} cannot be counted with {kind} attention; choose {' or '.join(kinds_of(name))}")
    with torch.device("meta"), torch.no_grad():
        ablation = ("local_only",) if kind == "swin" else ()
        model = create_model(name, image_size=image_size, ablation=ablation).eval()
        if kind == "full":
            _attend_fully(model)
        waste = _watch_padding(model)
        image = torch.empty(1, 3, *image_size)
        with FlopCounterMode(display=False) as counter, Traffic() as traffic:
            model(image)
    # The counter counts a multiply-add as two operations.
    counts = {
        module: {str(operator): flops // 2 for operator, flops in of_module.items()}
        for module, of_module in counter.get_flop_counts().items()
    }
    totals = {module: sum(macs.values()) for module, macs in counts.items()}
    attention = sum(macs for module, macs in totals.items() if _ATTENTION.search(module))
    attention -= sum(macs for module, macs in totals.items() if _NOT_ATTENTION.search(module))
    padding = sum(share * counts[module]["aten.bmm"] for module, share in waste.items())
    return Complexity(
        macs=totals["Global"],
        attention_macs=attention,
        activations=sum(writes for _, writes in traffic.moved),
        memory=FLOAT32_BYTES * max(reads + writes for reads, writes in traffic.moved),
        padding_share=padding / totals["Global"],
    )


def count_macs(name: str, side: int, **options: Any) -> int:
    """Count the multiply-adds of any model for one square image; `options` are those of `create_model`."""
    own_side = variants()[name].image_size if name in variants() else None
    with torch.device("meta"), torch.no_grad():
        model = create_model(name, image_size=None if side == own_side else side, **options).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    return counter.get_total_flops() // 2


def _attend_fully(model: nn.Module) -> None:
    """Replace attention in windows and stripes; global queries are then not needed."""
    for module in list(model.modules()):
        part = getattr(module, "attention", None)
        if isinstance(part, WindowAttention):
            module.attention = FullAttention(part.proj.in_features, part.bias_table.shape[1])
        elif isinstance(part, StripeAttention):
            module.attention = FullAttention(part.proj.in_features, 2 * part.heads)
        if hasattr(module, "global_query"):
            module.global_query = NoQuery()


def _watch_padding(model: nn.Module) -> dict[str, float]:
    """Return a dict that a forward pass fills: name of each attention → share of its tokens that are padding."""
    waste: dict[str, float] = {}

    def note(name: str, side: int, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        grid = args[0].shape[1:3]
        waste[name] = 1 - prod(grid) / prod(-(-length // side) * side for length in grid)

    for name, module in model.named_modules(prefix=type(model).__name__):
        if isinstance(module, (WindowAttention, StripeAttention)):
            side = module.window if isinstance(module, WindowAttention) else module.stripe
            module.register_forward_pre_hook(partial(note, name, side))
    return waste
