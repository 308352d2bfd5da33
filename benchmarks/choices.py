"""Measure which implementation of each operation is faster on this CPU, for the table in the package.

Prints the entry of this CPU, or with `--write` adds it to `src/globalvit/kernels/cpu/choices.json`. Nothing else may
run on the machine. The instruction set is limited as everywhere: `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2`.
"""

import argparse
import json

import torch

from globalvit.deploy import deploying
from globalvit.kernels.cpu import choices
from globalvit.kernels.cpu.linear import computes
from globalvit.models import ops

# Longer than at first use, so that the figures settle.
SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="add the entry to the package's table")
    options = parser.parse_args()
    if ops.kernels_for("cpu") != "c":
        parser.error(f"the C kernels cannot be used here: {ops.unavailable('c')}")
    entry = {}
    for dtype in (torch.float32, torch.bfloat16):
        if computes(dtype):
            for group in (choices.operations(dtype), deploying.deployed_blocks(dtype)):
                entry[group.name] = choices.to_json(choices.measure(group, SECONDS, rounds=1000))
    for group, found in entry.items():
        for name, choice in found.items():
            first, *others = choice["seconds"].values()
            print(f"{group}: {name}: {choice['used']}; C is {min(others) / first:.2f} times as fast as the best other")
    if options.write:
        table = json.loads(choices.TABLE.read_text()) if choices.TABLE.exists() else {}
        table[choices.cpu()] = entry
        choices.TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
