"""What the tests of ``--engine ray`` run in the processes of nodes: inspectors with faults, importable there."""

import os
import signal
import sys
import time
from collections.abc import Sequence

from inspectad.ray_engine.inspector import Inspector
from inspectad.ray_engine.job import Found, Job

BAD = "poison"


class Poisoned(Inspector):
    """Dies as a decoder that writes where it must not, of each image with a certain name; prints as libraries do."""

    def inspect(self, names: Sequence[bytes]) -> list[Found]:
        sys.stdout.write("what a library says\n")
        found = super().inspect(names)  # all work was done, and is lost
        if any(BAD.encode() in name for name in names):
            os.kill(os.getpid(), signal.SIGSEGV)
        return found


class Failing(Inspector):
    """Raises what nobody expects, and cannot be sent as it is."""

    def inspect(self, names: Sequence[bytes]) -> list[Found]:
        if any(BAD.encode() in name for name in names):
            error = RuntimeError("a bug,\nin two lines")
            error.held = sys.stdout  # type: ignore[attr-defined]  # no pickle has room for it
            raise error
        return super().inspect(names)


class Slow(Inspector):
    """Takes its time, so that a node can be killed meanwhile."""

    def inspect(self, names: Sequence[bytes]) -> list[Found]:
        time.sleep(0.3)
        return super().inspect(names)


class Unborn(Inspector):
    """Dies before it has seen an image."""

    def __init__(self, job: Job) -> None:
        os._exit(7)


class Doomed(Inspector):
    """Dies of every image."""

    def inspect(self, names: Sequence[bytes]) -> list[Found]:
        os._exit(9)


class Endless(Inspector):
    """Never answers for an image of a certain name."""

    def inspect(self, names: Sequence[bytes]) -> list[Found]:
        if any(BAD.encode() in name for name in names):
            time.sleep(3600)
        return super().inspect(names)
