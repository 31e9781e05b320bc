"""kill -9: scans at random moments (`kills.py` has the ways and means), and training between its renames."""

import hashlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from changed_model import change_manifest
from conftest import RunCli, Trained, cli_environment, command_line
from safetensors.torch import save

from inspectad.api import train
from inspectad.errors import OutputError
from inspectad.lock import LOCK_NAME
from inspectad.model_file import WEIGHTS_NAME
from inspectad.restore import read_manifest, restore
from inspectad.training import unpack_weights

KILLS = 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="copies of a process are made by fork")
@pytest.mark.timeout(900)
def test_no_row_is_lost_doubled_or_torn_by_kills_at_random_moments(trained: Trained) -> None:
    command = [sys.executable, Path(__file__).with_name("kills.py"), "--kills", str(KILLS), "--model", trained.model]
    done = subprocess.run(command, env=cli_environment(), capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) kills survived, (\d+) of them amid the rows; .*all equal \(\d+ s\)\n", done.stdout)
    assert said, done.stdout
    assert int(said[1]) == KILLS
    assert int(said[2]) >= KILLS // 4


# --- training: which model the folder holds, and whether all readers agree ---

WRITE = """
import os, pickle, sys
from pathlib import Path
from inspectad.cli import _reporting, _stop
from inspectad.model_file import write_model

def hook(event, arguments, seen=[]):
    if event == {event!r} and str(arguments[0]).endswith(".tmp"):
        seen.append(event)
        if len(seen) == {at}:
            os.kill(os.getpid(), {number})

parts = pickle.loads(Path(sys.argv[2]).read_bytes())
for number in (2, 15):
    __import__("signal").signal(number, _stop)
sys.addaudithook(hook)
_reporting(lambda: write_model(Path(sys.argv[1]), *parts))()
"""
"""What `train` does at its end, with a signal before the ``at``-th time that a temporary file is opened or renamed."""


@pytest.fixture(scope="module")
def new_model(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `write_model` is given: the trained model under another seed, whose samples lie the other way round."""
    tensors, samples = unpack_weights((trained.model / WEIGHTS_NAME).read_bytes())
    weights = save({**{f"module.{k}": v for k, v in tensors.items()}, "samples": torch.tensor(np.stack(samples[::-1]))})
    model, manifest = change_manifest(trained.model, seed=7, weights_sha256=hashlib.sha256(weights).hexdigest())
    path = tmp_path_factory.mktemp("new") / "parts"
    path.write_bytes(pickle.dumps((model, manifest, weights)))
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("event", ["open", "os.rename"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_model_is_the_old_one_or_the_new_one_whenever_its_writing_stops(
    trained: Trained, new_model: Path, tmp_path: Path, number: int, event: str, at: int
) -> None:
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    program = WRITE.format(event=event, at=at, number=int(number))
    command = [sys.executable, "-c", program, model, new_model]
    done = subprocess.run(command, env=cli_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    is_new = event == "os.rename" and at > 1
    manifest, _ = read_manifest(model)
    _, samples = unpack_weights((trained.model / WEIGHTS_NAME).read_bytes())
    np.testing.assert_array_equal(restore(model, manifest, "export").samples, samples[:: -1 if is_new else 1])
    assert manifest.seed == (7 if is_new else 0)
    if number == signal.SIGKILL:
        assert done.returncode == -number
    else:  # it removes what it made, or finishes what it has begun
        assert sorted(os.listdir(model)) == ["manifest.yaml", "model.onnx", WEIGHTS_NAME]
        assert yaml.safe_load((model / "manifest.yaml").read_bytes())["seed"] == manifest.seed
        assert (model / WEIGHTS_NAME).read_bytes() == (
            pickle.loads(new_model.read_bytes())[2] if is_new else (trained.model / WEIGHTS_NAME).read_bytes()
        )


def test_training_killed_while_it_learns_changes_nothing_and_the_next_one_cleans_up(
    trained: Trained, tmp_path: Path, run_cli: RunCli
) -> None:
    """And weights that belong to no model are named, with what to do."""
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    command = command_line("train", trained.good, "-o", model, "--device", "cpu")
    process = subprocess.Popen(command, env=cli_environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (model / LOCK_NAME).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(1)
        with pytest.raises(OutputError, match=rf"another inspectad is writing there \(process {process.pid} on "):
            train(trained.good, None, model)
    finally:
        process.kill()
        process.wait()
    assert {p.name: p.read_bytes() for p in model.iterdir() if p.name != LOCK_NAME} == before
    (model / f".inspectad-{'0' * 32}.tmp").write_bytes(b"half a model")
    (model / ".inspectad-notes.tmp").write_text("of somebody else")
    train(trained.good, None, model, size_px=64, pose="fixed", device="cpu")
    assert sorted(os.listdir(model)) == [".inspectad-notes.tmp", "manifest.yaml", "model.onnx", WEIGHTS_NAME]
    (model / WEIGHTS_NAME).write_bytes(before[WEIGHTS_NAME])
    done = run_cli("export", "-m", model, "-o", tmp_path / "line.onnx")
    assert done.returncode == 1
    assert f"{model / WEIGHTS_NAME}: damaged, or of another model" in done.stderr
    assert "copy the whole folder, or train again" in done.stderr
    assert not (tmp_path / "line.onnx").exists()
