"""The peer in a process of its own: the same drawn images, the same input size, the same weights."""

import importlib.resources
import json
import math
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from inspectad.benchmark.draws import Draw
from inspectad.benchmark.rows import Figures
from inspectad.embedded import embedded_weights
from inspectad.errors import InspectadError, UsageError
from inspectad.metrics import auroc, average_precision, best_f1

BACKBONE: Final = "efficientnet_lite0"
_MOST_SECONDS: Final = 3600.0  # a peer that hangs must not hold up the others for ever


@dataclass(frozen=True, slots=True)
class Peer:
    """A Python that has anomalib, and which anomalib: ``anomalib 2.7.0``."""

    python: Path
    version: str


def find_peer(python: Path) -> Peer:
    """Look what is there. Raises: UsageError when it does not run, or lacks anomalib."""
    found = shutil.which(python)
    code = "from importlib.metadata import version; print('anomalib', version('anomalib'))"
    try:
        command = [os.path.abspath(found or python), "-c", code]
        done = subprocess.run(  # noqa: S603  # what the user named
            command, capture_output=True, text=True, timeout=60, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--peer {python}: does not run ({error}); give a Python that has anomalib") from error
    if done.returncode:
        raise UsageError(f"--peer {python}: {_last_line(done.stderr)}; give a Python that has anomalib")
    return Peer(Path(command[0]), done.stdout.strip())


def measure_peer(peer: Peer, drawn: Draw, input_size_hw: tuple[int, int], seed: int) -> Figures:
    """Train the peer on the drawn good images (it cannot learn from defects) and score the test images.

    Its scores are raw and it has no threshold, so there are no figures at one.

    Raises: InspectadError: with the last line of what it said when it failed.
    """
    job = {
        "train": [os.path.abspath(f.path) for f in drawn.train_good],
        "test": [os.path.abspath(f.path) for f in (*drawn.test_good, *drawn.test_defects)],
        "weights": str(embedded_weights(BACKBONE)),
        "input_size_hw": input_size_hw,
        "seed": seed,
    }
    result = _run(peer.python, job)
    scores = np.array(result["scores"], np.float64)
    good, defects = np.split(scores, [len(drawn.test_good)])
    return Figures(
        good_images=len(drawn.train_good),
        defect_images=0,
        test_good=len(good),
        test_defects=len(defects),
        masks=0,
        unreadable=0,
        trained_on=0,
        image_auroc=auroc(good, defects),
        aupr=average_precision(good, defects),
        pixel_auroc=math.nan,
        aupro=math.nan,
        image_f1=math.nan,
        best_f1=best_f1(good, defects),
        false_reject_rate=math.nan,
        escape_rate=math.nan,
        fit_s=float(result["fit_s"]),
        images_per_s=len(scores) / float(result["predict_s"]),
        model_mb=math.nan,
    )


def _run(python: Path, job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="inspectad-peer-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        # Away from this package: the script's own folder comes first on its path, and holds modules of ours.
        with importlib.resources.as_file(importlib.resources.files(__package__) / "peer.py") as script:
            shutil.copyfile(script, work / "peer.py")
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), "peer.py", "job.json", "result.json"]
        try:
            done = subprocess.run(  # noqa: S603  # the same
                command,
                cwd=work,
                capture_output=True,
                timeout=_MOST_SECONDS,
                env=_environment(),
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InspectadError(f"the peer did not finish: {error}") from error
        if done.returncode:
            raise InspectadError(f"the peer failed: {_last_line(done.stderr.decode('utf-8', 'replace'))}")
        result: dict[str, Any] = json.loads((work / "result.json").read_text(encoding="utf-8"))
        if len(result["scores"]) != len(job["test"]):
            raise InspectadError(f"the peer scored {len(result['scores'])} of {len(job['test'])} images")
        return result


def _environment() -> dict[str, str]:
    """Ours, without what would make another Python import our packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
