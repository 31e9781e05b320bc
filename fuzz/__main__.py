"""Fuzz, or run one input again. Each target in a child process, so that a crash, a hang or a lack of memory is seen.

An input follows from target, seed and number alone. One that finds something is written to a file, and the command
that runs it again is shown.
"""

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fuzz.mutate import mutate

_MOST_MEGAPIXELS: Final = 1.0  # so that an input takes a millisecond
_MOST_MEMORY: Final = 768 * 2**20  # more than a target takes to begin with
_HANG_SECONDS: Final = 60.0  # generous: machines are slow and busy
_NOT_YET: Final = 2**64 - 1  # the child has not begun: imports take long


def main() -> int:
    """0 when nothing was found, 1 when something was."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs, shared among the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS), help="with commas between (all)")
    parser.add_argument("--output", type=Path, default=Path("fuzz-findings"), help="folder for inputs that found a bug")
    parser.add_argument("--input", type=Path, nargs="+", help="run these files, for one target, and show the traceback")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets.split(",")
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"no target named {', '.join(sorted(unknown))}; there are: {', '.join(TARGETS)}")
    if options.child:
        _work(names[0], options.seed, *options.child)
        return 0
    if options.input:
        _limit()
        for path in options.input:
            TARGETS[names[0]].run(path.read_bytes())
        print(f"{len(options.input)} inputs of {names[0]}: nothing wrong")
        return 0
    total = sum(TARGETS[name].share for name in names)
    found = 0
    for name in names:
        count = -(-options.count * TARGETS[name].share // total)
        started = time.monotonic()
        findings = list(_fuzz(name, options.seed, count))
        print(f"{name}: {count} inputs in {time.monotonic() - started:.1f} s, {len(findings)} findings", flush=True)
        for finding in findings:
            finding.report(name, options.seed, options.output)
        found += len(findings)
    return 1 if found else 0


@dataclass(frozen=True, slots=True)
class _Finding:
    """What an input did, and what is known of it."""

    number: int
    what: str
    detail: str

    def report(self, name: str, seed: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{seed}-{self.number}.bin"
        path.write_bytes(_input(name, seed, self.number))
        print(f"  {self.what}, input {self.number}\n{self.detail}")
        print(f"  again: python -m fuzz --targets {name} --input {path}")


def _input(name: str, seed: int, number: int) -> bytes:
    from fuzz.targets import TARGETS

    target = TARGETS[name]
    return mutate(random.Random(f"{name} {seed} {number}"), target.seeds(), target.words())


def _fuzz(name: str, seed: int, count: int) -> Iterator[_Finding]:
    """All inputs of a target; a child that died is followed by another one, behind the input that killed it."""
    first = 0
    with tempfile.TemporaryDirectory(prefix="inspectad-fuzz-") as folder:
        place, log = Path(folder, "at"), Path(folder, "log")
        while first < count:
            place.write_bytes(struct.pack("<Q", _NOT_YET))
            command = [sys.executable, "-m", "fuzz", "--targets", name, "--seed", str(seed), "--child"]
            with log.open("wb") as said:
                child = subprocess.Popen(
                    [*command, str(place), str(first), str(count)], stdout=subprocess.PIPE, stderr=said, text=True
                )
            hung = _watch(child, place)
            lines = child.stdout.read().splitlines() if child.stdout else []
            for line in lines:
                yield _Finding(**json.loads(line))
            if child.wait() == 0:
                return
            number = struct.unpack("<Q", place.read_bytes())[0]
            tail = log.read_text(errors="replace")[-3000:]
            if number == _NOT_YET:
                sys.exit(f"{name}: the child did not start\n{tail}")
            yield _Finding(number, f"hangs for {_HANG_SECONDS:g} s" if hung else f"ends with {child.returncode}", tail)
            first = number + 1


def _watch(child: "subprocess.Popen[str]", place: Path) -> bool:
    """Wait for a child; end it, and say so, when it stays at one input for too long."""
    last, since = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(0.05)
        (now,) = struct.unpack("<Q", place.read_bytes())
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > _HANG_SECONDS * (5 if now == _NOT_YET else 1):
            child.kill()
            return True
    return False


def _work(name: str, seed: int, place: str, first: str, last: str) -> None:
    """The child: says in a shared file at which input it is, and on standard output what went wrong."""
    from fuzz.targets import TARGETS

    faulthandler.enable()
    target = TARGETS[name]
    target.run(target.seeds()[0])  # imports
    _limit()
    with open(place, "r+b") as file, mmap.mmap(file.fileno(), 8) as at:
        for number in range(int(first), int(last)):
            data = _input(name, seed, number)
            at[:] = struct.pack("<Q", number)
            before = _most_memory()
            try:
                target.run(data)
            except BaseException as error:
                _say(number, type(error).__name__, traceback.format_exc())
            if (taken := _most_memory() - before) > _MOST_MEMORY // 2:
                _say(number, f"took {taken >> 20} MiB", "")


def _limit() -> None:
    from inspectad.image_limits import set_max_megapixels

    set_max_megapixels(_MOST_MEGAPIXELS)
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + _MOST_MEMORY, in_use + _MOST_MEMORY))


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _say(number: int, what: str, detail: str) -> None:
    finding: dict[str, Any] = {"number": number, "what": what, "detail": detail[-3000:]}
    print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
