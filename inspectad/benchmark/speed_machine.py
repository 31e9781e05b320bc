"""What a benchmark ran on."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnxruntime

from inspectad import __version__
from inspectad.benchmark.speed_process import ask_nvidia_smi
from inspectad.cores import cores

_TELLING: Final = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_bf16", "amx_int8", "asimddp", "i8mm")
"""Instructions that the networks' speed depends on, by their names in /proc/cpuinfo."""


def describe_machine(devices: Sequence[str]) -> dict[str, str]:
    """Processor, its instructions, cores, GPUs, system and versions, for people. Args: devices: that are measured."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model, flags = parse_cpuinfo(lines)
    indices = sorted({int(d.partition(":")[2] or 0) for d in devices if d != "cpu"})
    gpus = [found for i in indices if (found := ask_nvidia_smi("name,driver_version", i))]
    return {
        "processor": model or platform.processor() or platform.machine(),
        "instructions": " ".join(flags) or "unknown",
        "cores": str(cores()),
        **({"GPU": "; ".join(gpus)} if gpus else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "inspectad": __version__,
        "Python": platform.python_version(),
        "onnxruntime": str(onnxruntime.__version__),
        "OpenCV": str(cv2.__version__),
        "numpy": np.__version__,
        **_versions("torch"),
    }


def parse_cpuinfo(lines: Iterable[str]) -> tuple[str, list[str]]:
    """Processor's name, and which of the telling instructions it has."""
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return facts.get("model name", ""), [f for f in _TELLING if f in flags]


def _versions(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
