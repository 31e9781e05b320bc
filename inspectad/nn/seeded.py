"""Random numbers that depend on what they are for and on nothing that happened before, so that a training that was
stopped and goes on draws the same ones."""

import numpy as np
import torch


def source(*key: int) -> torch.Generator:
    """A generator of random numbers, on the CPU whatever the device, that depends on this key alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
