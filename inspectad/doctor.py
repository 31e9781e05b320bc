"""``inspectad doctor``: what works on this machine, and the command that mends what does not."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``ok``, ``missing`` (optional, not there) or ``broken``.
        advice: what to do about it, empty when nothing is to be done.
    """

    what: str
    state: str
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """All findings, in reading order. Nothing is changed on the machine."""
    return [_python(), _cores(), *_packages(), *_onnxruntime(), _training(), _backbone()]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _cores() -> Finding:
    return Finding("CPU", "ok", f"{os.cpu_count()} cores")


def _packages() -> list[Finding]:
    findings = []
    for package in ("numpy", "opencv-python-headless", "typer", "rich", "pyyaml"):
        try:
            findings.append(Finding(package, "ok", importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, "broken", "not installed", f"pip install {package}"))
    return findings


def _onnxruntime() -> list[Finding]:
    installed = [p for p in ("onnxruntime-gpu", "onnxruntime") if _version(p)]
    if not installed:
        return [Finding("onnxruntime", "broken", "not installed", "pip install onnxruntime-gpu")]
    if len(installed) == 2:
        advice = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
        return [Finding("onnxruntime", "broken", "both builds are installed and overwrite each other", advice)]
    try:
        from inspectad.detector import gpu_problem
    except (ImportError, OSError) as error:
        return [
            Finding(installed[0], "broken", f"does not load ({error})", f"pip install --force-reinstall {installed[0]}")
        ]
    findings = [Finding(installed[0], "ok", _version(installed[0]))]
    problem = gpu_problem()
    if problem:
        advice = "install NVIDIA's driver, if there is a card" if "driver" in problem else ""
        return [*findings, Finding("cuda", "missing", f"{problem}; scan runs on the CPU", advice)]
    return [*findings, *(_provider(device) for device in ("cuda", "tensorrt"))]


def _provider(device: str) -> Finding:
    """Really start a session on the device: that a provider is listed says nothing about its libraries."""
    from inspectad.detector import try_provider

    problem = try_provider(device)
    if not problem:
        return Finding(device, "ok", "works")
    advice = 'pip install "inspectad[cuda]"' if device == "cuda" else "pip install tensorrt (optional)"
    return Finding(device, "broken" if device == "cuda" else "missing", problem, advice)


def _training() -> Finding:
    missing = [p for p in ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "scipy") if not find_spec(p)]
    if missing:
        advice = 'pip install "inspectad[train]"'
        return Finding("training", "missing", f"without {', '.join(missing)}: scan, evaluate and info work", advice)
    try:
        import torch
        import torchvision
    except (ImportError, RuntimeError, OSError) as error:
        advice = "pip install --force-reinstall torch torchvision"
        return Finding("training", "broken", f"torch and torchvision do not load together ({error})", advice)
    gpu = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "on the CPU"
    return Finding("training", "ok", f"torch {torch.__version__}, torchvision {torchvision.__version__}, {gpu}")


def _backbone() -> Finding:
    from inspectad.embedded import embedded_weights

    try:
        path = embedded_weights("efficientnet_lite0")
    except FileNotFoundError as error:
        return Finding("embedded backbone", "broken", str(error), f"{sys.executable} -m pip install --force inspectad")
    return Finding("embedded backbone", "ok", f"efficientnet_lite0, {path.stat().st_size / 1e6:.1f} MB")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
