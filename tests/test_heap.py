"""Freed memory goes back to the system though a block behind it is still in use; and when that is done."""

import platform
import subprocess
import sys

import pytest

from inspectad.heap import Keeper

FREED_BEHIND = """
import numpy as np, psutil
from inspectad.heap import give_back
held = lambda: psutil.Process().memory_info().rss / 1e6
blocks = [np.ones(100_000, np.uint8) for _ in range(800)]  # each too small to be a mapping of its own
last = [np.ones(100, np.uint8) for _ in range(1000)]
blocks.clear()
before = held()
given = give_back()
print(given, before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps it")
def test_freed_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", FREED_BEHIND], capture_output=True, text=True, timeout=120, check=True)
    given, megabytes = done.stdout.split()
    assert given == "True"
    assert float(megabytes) > 40


def due(*pixels: int) -> list[int]:
    """Behind which images."""
    keeper = Keeper()
    return [i for i, of in enumerate(pixels) if keeper.is_due(of)]


def test_memory_is_given_back_behind_an_image_far_larger_than_the_usual_ones() -> None:
    assert due(*[50_000] * 20, 4_000_000, *[50_000] * 20, 4_000_000) == [20, 41]
    assert due(*[0] * 5, 1_000_000, 1_000_001) == [6]


def test_where_all_images_are_large_it_is_given_back_now_and_then() -> None:
    assert due(*[12_000_000] * 1_001) == [0, 499, 999]
