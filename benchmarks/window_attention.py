"""Attention in windows and stripes on a GPU: the kernels in Triton beside PyTorch's fused attention.

    python benchmarks/window_attention.py [--batch 128] [--dtype bfloat16] [--height 224] [--only triton]

Times are medians of the device's own clock, with the cache emptied before each run. `floor` is the time that a copy on
the same device takes for the bytes that attention must read and write once: the projection and the result; backward the
projection, the result's gradient and the projection's. A factor is time over floor; the aim is 1.3.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from globalvit import set_kernels
from globalvit.models import ops
from globalvit.models.variants import GCVIT, GPVIT

NAMES = ("triton", "torch")
COPIED_BYTES = 2**30
STRIDE = 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call of attention: its name, the tensors it differentiates, and how an implementation computes it."""

    name: str
    leaves: list[Tensor]
    run: Callable[[str], Tensor]

    def seconds(self, name: str) -> tuple[float, float]:
        """Medians of the forward pass alone, and of the backward pass alone."""
        with torch.no_grad():
            forward = median(lambda: self.run(name))
        out = self.run(name)
        cotangent = torch.randn_like(out)
        return forward, median(lambda: torch.autograd.grad(out, self.leaves, cotangent, retain_graph=True))

    def bytes(self) -> tuple[int, int]:
        """What must be moved forward and backward."""
        inputs = sum(leaf.nbytes for leaf in self.leaves)
        with torch.no_grad():
            out = self.run("triton").nbytes
        return inputs + out, 2 * inputs + out


def median(function: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(function, return_mode="median") / 1e3


def bandwidth() -> float:
    """Bytes a second of a copy, reading and writing counted."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / median(lambda: target.copy_(source))


def window_cases(batch: int, height: int, dtype: torch.dtype) -> Iterator[Case]:
    """The stages of GC ViT tiny, local and global."""
    config = GCVIT["gcvit_tiny"]
    for stage, (width, heads, window) in enumerate(zip(config.channels, config.num_heads, config.window, strict=True)):
        side = -(-height // (4 * 2**stage * window)) * window
        table = torch.randn((2 * window - 1) ** 2, heads, device="cuda", requires_grad=True)
        for parts in (3, 2):
            projected = torch.randn(batch, side, side, parts * width, device="cuda", dtype=dtype, requires_grad=True)
            query = torch.randn(batch, heads, window**2, width // heads, device="cuda", dtype=dtype, requires_grad=True)
            shared = [] if parts == 3 else [query]

            def run(name: str, projected=projected, table=table, window=window, shared=shared) -> Tensor:
                query = shared[0] if shared else None
                with set_kernels(name):
                    return ops.attend_windows(projected, table, window=window, query_BhNd=query)

            kind = "local" if parts == 3 else "global"
            yield Case(name=f"GC ViT tiny stage {stage + 1} {kind}", leaves=[projected, table, *shared], run=run)


def stripe_cases(batch: int, height: int, dtype: torch.dtype) -> Iterator[Case]:
    """The local blocks of GPViT."""
    for variant, config in GPVIT.items():
        side = -(-height // (STRIDE * config.stripe)) * config.stripe
        half, heads = config.width // 2, config.num_heads // 2
        qkv = torch.randn(batch, side, side, 6 * half, device="cuda", dtype=dtype, requires_grad=True)
        convs = [nn.Conv2d(half, half, 3, padding=1, groups=half, device="cuda", dtype=dtype) for _ in range(2)]
        parameters = [parameter for conv in convs for parameter in conv.parameters()]

        def run(name: str, qkv=qkv, convs=convs, heads=heads, stripe=config.stripe) -> Tensor:
            with set_kernels(name):
                return ops.attend_stripes(qkv, *convs, stripe=stripe, heads=heads)

        yield Case(name=f"{variant} stripes", leaves=[qkv, *parameters], run=run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--height", type=int, default=224, help="side of the square images in pixels")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--only", choices=NAMES, help="time one implementation, for a profiler")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device and there is none", file=sys.stderr)
        return 1
    rate = bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; a copy moves {rate / 1e9:.0f} GB/s\n")
    names = (given.only,) if given.only else NAMES
    print("| case | pass | floor µs | " + " | ".join(f"{name} µs | factor" for name in names) + " |")
    print("|---" * (3 + 2 * len(names)) + "|")
    for make in (window_cases, stripe_cases):
        for case in make(given.batch, given.height, getattr(torch, given.dtype)):
            report(case, rate, names)
    return 0


def report(case: Case, rate: float, names: tuple[str, ...]) -> None:
    """Two lines of the table."""
    times = {name: case.seconds(name) for name in names}
    for index, way in enumerate(("forward", "backward")):
        floor = case.bytes()[index] / rate
        cells = (f"{times[name][index] * 1e6:.0f} | {times[name][index] / floor:.2f}" for name in names)
        print(f"| {case.name} | {way} | {floor * 1e6:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
