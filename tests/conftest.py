"""What several test files share: one small trained model, and the command line as a user runs it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import inspectad
from inspectad.cli import app
from inspectad.demo_part import render_part

PART_HW = (160, 192)
GOOD_SEEDS = range(6)
DEFECTS = {"scratch_6.png": (6, "scratch"), "stain_7.png": (7, "stain")}

LONG = (
    "utad", "utad_verbs", "bad_input", "devnet", "ray_cluster", "benchmark", "examples", "training_masks", "speed",
    "export", "htdg", "faults_reading", "soak", "ray_child", "faults_kills", "scan_tiles", "explain", "calibration",
    "pose", "watch",
)  # fmt: skip
"""Files that took more than 20 s when last measured, the longest first (``pytest --durations``)."""

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, slots=True)
class Trained:
    """Six good parts and two defects of 160 x 192 px, and a model trained on them. Read only: copy, never change.

    Attributes:
        root: folder that holds the others.
        good: ``good_0.png`` to ``good_5.png``.
        defects: ``scratch_6.png`` and ``stain_7.png``.
        model: model folder.
    """

    root: Path
    good: Path
    defects: Path
    model: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of `LONG` first, so that at the end no worker is left alone with one of them."""
    rank = {f"test_{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONG)))


def write_png(path: Path, image: np.ndarray) -> Path:
    """Write (H, W, 3) RGB or (H, W) grey, 8 or 16 bits; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    for seed in GOOD_SEEDS:
        write_png(root / "good" / f"good_{seed}.png", render_part(seed, None, PART_HW).image)
    for name, (seed, defect) in DEFECTS.items():
        write_png(root / "defects" / name, render_part(seed, defect, PART_HW).image)
    inspectad.train(root / "good", root / "defects", root / "model", size_px=96, device="cpu")
    return Trained(root, root / "good", root / "defects", root / "model")


def cli_environment(**extra: str) -> dict[str, str]:
    """Of this process, with messages on one line and without colours."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONUTF8": "1", **extra}


def command_line(*arguments: object, prelude: str = "") -> list[str]:
    """How a subprocess is started; ``prelude`` is Python that it runs first (limits, signal handlers)."""
    program = ["-c", f"{prelude}\nfrom inspectad.cli import main\nmain()"] if prelude else ["-m", "inspectad"]
    return [sys.executable, *program, *map(_argument, arguments)]


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """``run_cli("scan", folder, cwd=..., stdin=..., env=...)``: the program as a subprocess, its output captured."""

    def run(
        *arguments: object,
        cwd: Path | None = None,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
        prelude: str = "",
    ) -> "subprocess.CompletedProcess[str]":
        given = os.fsencode(stdin)
        command = command_line(*arguments, prelude=prelude)
        done = subprocess.run(
            command, cwd=cwd, input=given, env=cli_environment(**(env or {})), capture_output=True, timeout=280
        )
        texts = (part.decode("utf-8", "surrogateescape") for part in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    return run


@pytest.fixture(scope="session")
def run_here() -> RunCli:
    """As `run_cli`, in this process, which has loaded torch and exported before: a training takes a third of the time.

    For verbs whose words, exit code and files are the point, not what a process of its own goes through.
    """

    def run(*arguments: object, cwd: Path = Path()) -> "subprocess.CompletedProcess[str]":
        given = [_argument(a) for a in arguments]
        with contextlib.chdir(cwd):
            done = CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, given)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(given, done.exit_code, done.stdout, done.stderr)

    return run


def _argument(value: object) -> str:
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
