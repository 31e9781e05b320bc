"""What a line PC needs: `--help` loads nothing heavy, and judging images needs nothing of the extra [train]."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import inspectad

TRAIN_ONLY = ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "scipy", "timm", "sklearn", "sympy")
RAY_ONLY = ("ray", "pyarrow", "fsspec", "pandas", "s3fs")
HEAVY = (*TRAIN_ONLY, *RAY_ONLY, "onnxruntime", "cv2", "numpy")
VERBS = ("train", "scan", "export", "explain", "evaluate", "benchmark", "info", "demo", "doctor")

HIDE = f"""
# Packages that are not installed: nobody finds them, as PathFinder finds nothing that is not there.
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {TRAIN_ONLY!r} else find(name, path, target)
PathFinder.find_spec = find_spec
"""


def modules_after(code: str) -> set[str]:
    """Top-level packages that are loaded after some code, run in a fresh interpreter."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.__stderr__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.fixture
def line_pc(tmp_path: Path) -> dict[str, str]:
    """Environment of a program that finds none of the packages of [train]."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    return {"PYTHONPATH": str(tmp_path / "site")}


def test_the_check_below_would_see_a_heavy_module() -> None:
    assert {"numpy", "cv2"} <= modules_after("import cv2")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"]),
        *(["benchmark", verb, "--help"] for verb in ("accuracy", "speed", "soak")),
        *([verb, "--help"] for verb in ("train", "scan")),
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"from inspectad.cli import app\ntry:\n    app({arguments!r})\nexcept SystemExit as e:\n    assert not e.code"
    )
    loaded = modules_after(code)
    assert "inspectad" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import inspectad, inspectad.cli, inspectad.api") & set(HEAVY)


def test_every_verb_is_in_the_help(run_cli) -> None:
    done = run_cli("--help")
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_what_the_package_offers_is_importable_on_first_use() -> None:
    assert [name for name in inspectad.__all__ if getattr(inspectad, name, None) is None] == []
    assert inspectad.Detector.__name__ == "OnnxDetector"
    with pytest.raises(AttributeError, match="no attribute 'detector_of_ghosts'"):
        _ = inspectad.detector_of_ghosts


def test_the_hidden_packages_are_really_hidden(line_pc: dict[str, str], run_cli) -> None:
    done = run_cli("doctor", env=line_pc)
    assert "without torch, torchvision, onnx" in " ".join(done.stdout.split())


def test_scan_here_loads_nothing_of_ray(trained, tmp_path: Path) -> None:
    arguments = ["scan", str(trained.good), "-m", str(trained.model), "-o", str(tmp_path / "r"), "--heatmaps"]
    loaded = modules_after(f"from inspectad.cli import app\napp({arguments!r}, standalone_mode=False)")
    assert "onnxruntime" in loaded
    assert not loaded & {*TRAIN_ONLY, *RAY_ONLY}


def test_scan_needs_nothing_of_train(trained, run_cli, tmp_path: Path, line_pc: dict[str, str]) -> None:
    done = run_cli("scan", trained.good, "-m", trained.model, "-o", tmp_path / "r", "--heatmaps", env=line_pc)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "r" / "results.csv").read_text().splitlines()) == 1 + len(list(trained.good.iterdir()))
    assert len(list((tmp_path / "r" / "heatmaps").iterdir())) == len(list(trained.good.iterdir()))


def test_onnxruntime_reports_nothing_to_its_maker(
    trained, run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY"):  # with these it is silent anyway
        monkeypatch.delenv(name, raising=False)
    done = run_cli("info", "-m", trained.model, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # else .ses, with an identifier


def test_info_needs_nothing_of_train(trained, run_cli, line_pc: dict[str, str]) -> None:
    done = run_cli("info", "-m", trained.model, "--json", env=line_pc)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["good_images"]) == len(list(trained.good.iterdir()))


def test_evaluate_needs_nothing_of_train(trained, run_cli, line_pc: dict[str, str]) -> None:
    done = run_cli("evaluate", trained.good, trained.defects, "-m", trained.model, "--json", env=line_pc)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["false_rejects"]["of"] == len(list(trained.good.iterdir()))


def test_benchmark_speed_needs_nothing_of_train(trained, run_cli, tmp_path: Path, line_pc: dict[str, str]) -> None:
    arguments = ["benchmark", "speed", trained.good, "-m", trained.model, "-o", tmp_path / "speed", "--seconds", 0.02]
    few = ["--batch-sizes", 1, "--heatmaps", "off", "--devices", "cpu"]
    done = run_cli(*arguments, *few, env=line_pc)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "speed" / "speed.json").read_text())
    assert [t["precision"] for t in found["targets"]] == ["fp32"]
    assert "other precisions and sizes need torch" in done.stderr
    refused = run_cli(*arguments, *few, "--precisions", "int8", env=line_pc)
    assert refused.returncode == 1
    assert 'pip install "inspectad[train]"' in refused.stderr


@pytest.mark.parametrize("verb", ["train", "export", "explain", "demo", "benchmark"])
def test_what_does_need_it_says_how_to_get_it(
    trained, run_cli, tmp_path: Path, line_pc: dict[str, str], verb: str
) -> None:
    arguments = {
        "train": [trained.good],
        "export": ["-m", trained.model],
        "explain": [trained.good, "-m", trained.model],
        "demo": [],
        "benchmark": ["accuracy", trained.root],
    }[verb]
    done = run_cli(verb, *arguments, "-o", tmp_path / "out", env=line_pc)
    assert done.returncode == 1
    assert 'pip install "inspectad[train]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
