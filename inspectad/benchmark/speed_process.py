"""What only another process can tell: how long a scan takes from a cold start, and how much memory it takes at most."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Final

from inspectad.errors import InspectadError

_STARTS: Final = 3
_POLL_S: Final = 0.1
_MIB: Final = 2**20

# A small process between, since the system takes for a process's peak memory that of the one that started it, too.
_MEMORY_OF_CHILD: Final = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([code, peak * (1 if sys.platform == "darwin" else 1024)]))
"""


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Seconds from starting the program to the first row on its standard output, and to its end, of several starts."""

    best_s: float
    median_s: float
    median_exit_s: float
    starts: int


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """At most, in bytes: resident memory of the process, and what the GPU held more than before; None: not known."""

    host_bytes: int | None
    device_bytes: int | None


def scan_command(images: Sequence[Path], model: Path, output: Path, device: str, *more: str) -> list[str]:
    """The command line of a scan, of this very program."""
    options = ["-m", str(model), "-o", str(output), "--device", device, *more]
    return [sys.executable, "-m", "inspectad", "scan", *map(str, images), *options]


def cold_start(image: Path, model: Path, work: Path, device: str) -> ColdStart:
    """Start ``inspectad scan`` on one image, several times. Raises: InspectadError when it fails."""
    rows, ends = [], []
    command = scan_command([image], model, work, device, "--format", "jsonl")
    for _ in range(_STARTS):
        begin = time.perf_counter()
        with subprocess.Popen(  # noqa: S603  # this very program
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as p:
            assert p.stdout is not None
            line = p.stdout.readline()
            rows.append(time.perf_counter() - begin)
            _, errors = p.communicate()
            ends.append(time.perf_counter() - begin)
        if not line or p.returncode:
            raise InspectadError(f"a scan of {image} failed: {errors.decode(errors='replace').strip()[-300:]}")
    return ColdStart(min(rows), median(rows), median(ends), _STARTS)


def peak_memory(images: Path, model: Path, work: Path, device: str) -> PeakMemory:
    """Of ``inspectad scan --heatmaps`` on a folder, in a process of its own."""
    if find_spec("resource") is None:  # Windows
        return PeakMemory(None, None)
    command = scan_command([images], model, work, device, "--heatmaps", "all")
    with _watched_gpu(device) as peak:
        between = [sys.executable, "-c", _MEMORY_OF_CHILD, *command]
        done = subprocess.run(between, capture_output=True, check=False)  # noqa: S603  # this very program
    try:
        code, host = json.loads(done.stdout)
    except ValueError:
        code, host = done.returncode or 1, None
    if code:
        raise InspectadError(f"a scan of {images} failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return PeakMemory(int(host), peak.more)


class _Peak:
    """What a GPU holds at most beyond what it held at first, in bytes."""

    def __init__(self, first: int | None) -> None:
        self._first = first
        self._most = first or 0

    def see(self, held: int | None) -> None:
        self._most = max(self._most, held or 0)

    @property
    def more(self) -> int | None:
        return None if self._first is None else self._most - self._first


@contextlib.contextmanager
def _watched_gpu(device: str) -> Iterator[_Peak]:
    index = 0 if device == "cpu" else int(device.partition(":")[2] or 0)
    peak = _Peak(None if device == "cpu" else _held(index))
    over = threading.Event()

    def poll() -> None:
        while not over.wait(_POLL_S):
            peak.see(_held(index))

    thread = threading.Thread(target=poll, daemon=True)
    if peak.more is not None:
        thread.start()
    try:
        yield peak
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _held(index: int) -> int | None:
    found = ask_nvidia_smi("memory.used", index)
    return int(float(found) * _MIB) if found.replace(".", "", 1).isdigit() else None


def ask_nvidia_smi(what: str, index: int = 0) -> str:
    """What NVIDIA's program says of a GPU; empty when there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, f"--query-gpu={what}", "--format=csv,noheader,nounits", f"--id={index}"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603  # found on PATH, with arguments of our own
            command, capture_output=True, text=True, timeout=10, check=False
        )
        return done.stdout.strip() if not done.returncode else ""
    return ""
