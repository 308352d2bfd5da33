"""Random numbers that are a function of what they are for, and leave the process's own random state alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What numbers are drawn for; each has its own, so that none repeats another's."""

    AUGMENT = 1
    ERASE = 2
    ORDER = 3
    MIX = 4


def derive(purpose: Purpose, *key: int) -> int:
    """A 64-bit seed from non-negative numbers such as (seed, epoch, index)."""
    return int(np.random.SeedSequence((int(purpose), *key)).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's CPU generators for the block, then put them back as they were."""
    # torch.manual_seed would also seed the generators of accelerators.
    generator = torch.default_generator
    states = random.getstate(), np.random.get_state(), generator.get_state()
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        generator.set_state(states[2])
