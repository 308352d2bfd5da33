"""Where the time of a run goes, operator by operator, and what its matrix products alone would allow.

    python benchmarks/operators.py MODEL [--mode train] [--batch-size 8] [--precision bf16] [--deployed] [--rows 20]

The profiler's table is PyTorch's own. The limit is the time of the run's convolutions and matrix products at the rate
that the largest of some square products reaches on this machine; all other operations are taken to cost nothing.
"""

import argparse
import os
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from globalvit.benchmark.cells import MODES, OURS, PRECISIONS, Cell, Entry
from globalvit.benchmark.machine import describe, in_a_line, synchronize
from globalvit.benchmark.networks import create, own_size
from globalvit.benchmark.steps import DTYPES, make_step

SIDES = (1024, 2048, 4096)


def product_rate(device: str, precision: str) -> float:
    """Floating-point operations per second of the fastest square product; a multiply-add is two."""
    best = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        out = a @ b
        for _ in range(5):
            synchronize(device)
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    """Profile a few runs and print the table."""
    # The profiler's lines about its own start and stop say nothing here.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--mode", choices=MODES, default="inference")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--deployed", action="store_true")
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    size = (options.image_size,) * 2 if options.image_size else own_size(options.model)
    entry = Entry(source=OURS, model=options.model, way="deployed" if options.deployed else "eager")
    cell = Cell(
        model=options.model,
        mode=options.mode,
        precision=options.precision,
        batch_size=options.batch_size,
        image_size=size,
        entries=(entry,),
    )
    step = make_step(create(entry, cell), cell, entry, options.device)
    plain = Entry(source=OURS, model=options.model, way="eager")
    counted = make_step(create(plain, cell), cell, plain, options.device)
    with FlopCounterMode(display=False) as counter:
        counted()
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if options.device == "cuda" else []
    step()
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(3):
            step()
        synchronize(options.device)
    column = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
    print(in_a_line(describe(options.device)))
    print(recorded.key_averages().table(sort_by=column, row_limit=options.rows, max_name_column_width=50))
    rate, flops = product_rate(options.device, options.precision), counter.get_total_flops()
    print(
        f"{flops / 1e9:.1f} GFLOP a run; products reach {rate / 1e9:.0f} GFLOP/s and alone would allow "
        f"{options.batch_size * rate / flops:.1f} images/s"
    )


if __name__ == "__main__":
    main()
