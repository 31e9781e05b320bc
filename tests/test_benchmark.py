"""``benchmark accuracy`` as it is run: its rows against the verbs and scikit-learn, resuming, failures, the peer."""

import ast
import csv
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PART_HW, RunCli, write_png
from sklearn import metrics as sklearn_metrics

from inspectad.benchmark import accuracy, peer_process
from inspectad.benchmark.accuracy import run_accuracy
from inspectad.benchmark.cells import run_cell
from inspectad.benchmark.datasets import read_dataset
from inspectad.benchmark.plan import AccuracyConfig, plan
from inspectad.benchmark.rows import Cell, Figures, Row, read_rows
from inspectad.demo_part import render_part
from inspectad.embedded import embedded_weights
from inspectad.errors import UsageError

SIZE = 96
MISSING_MASK = "stain/31.png"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec layout: 5 good to learn from, 3 to test, 4 defects of two kinds, one of them without a mask."""
    root = tmp_path_factory.mktemp("sets") / "parts"
    for folder, seeds in (("train/good", range(5)), ("test/good", range(10, 13))):
        for seed in seeds:
            write_png(root / folder / f"{seed:02}.png", render_part(seed, None, PART_HW).image)
    for defect, seeds in (("missing_hole", range(20, 22)), ("stain", range(30, 32))):
        for seed in seeds:
            part = render_part(seed, defect, PART_HW)
            write_png(root / "test" / defect / f"{seed}.png", part.image)
            if f"{defect}/{seed}.png" != MISSING_MASK:
                write_png(root / "ground_truth" / defect / f"{seed}_mask.png", part.mask)
    return root


def drawn(folder: Path, seed: int, count: int) -> list[Path]:
    """As README says: by the SHA-256 of ``<seed>/<path>``."""
    names = {
        p.relative_to(folder).as_posix(): p for p in folder.rglob("*.png") if "good" not in p.relative_to(folder).parts
    }
    return [names[n] for n in sorted(names, key=lambda n: hashlib.sha256(f"{seed}/{n}".encode()).hexdigest())][:count]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def measured(parts: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory):
    """One cell by the command line: 3 good and 1 defect to learn from; a second that is impossible."""
    out = tmp_path_factory.mktemp("measured")
    done = run_cli(
        "benchmark", "accuracy", parts, "--shots", "3,9", "--defect-shots", 1, "--seeds", 1, "--size", SIZE, "-o", out
    )
    return done, out


@pytest.fixture(scope="session")
def by_the_verbs(parts: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory):
    """The same cell by hand: draw, ``train``, ``scan``, and ``evaluate``. Folder, rows of the scan, evaluation."""
    work = tmp_path_factory.mktemp("verbs")
    for folder, files in (
        ("good", drawn(parts / "train" / "good", 0, 3)),
        ("defects", drawn(parts / "test", 0, 1)),
        ("test/good", list((parts / "test" / "good").iterdir())),
        ("test/defects", drawn(parts / "test", 0, 9)[1:]),
    ):
        for file in files:
            kind = file.parent.name if folder.endswith("defects") else ""
            (work / folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, work / folder / kind / file.name)
    assert run_cli("train", "good", "defects", "--size", SIZE, cwd=work).returncode == 0
    scan = run_cli("scan", "test", "--format", "jsonl", "--maps", cwd=work)
    evaluation = run_cli("evaluate", "test/good", "test/defects", "--masks", parts / "ground_truth", "--json", cwd=work)
    return work, [json.loads(line) for line in scan.stdout.splitlines()], json.loads(evaluation.stdout)


def test_a_row_agrees_with_scikit_learn_on_the_scores_of_scan(measured, by_the_verbs) -> None:
    _, out = measured
    _, rows, _ = by_the_verbs
    found = read_csv(out / "rows.csv")[0]
    truth = [not r["image"].startswith("good/") for r in rows]
    scores, said = [r["score"] for r in rows], [r["verdict"] == "NG" for r in rows]
    assert sum(truth) == 3
    assert float(found["image_auroc"]) == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores), abs=1e-6)
    assert float(found["aupr"]) == pytest.approx(sklearn_metrics.average_precision_score(truth, scores), abs=1e-6)
    assert float(found["image_f1"]) == pytest.approx(sklearn_metrics.f1_score(truth, said), abs=1e-6)
    thresholds = [sklearn_metrics.f1_score(truth, np.array(scores) >= t) for t in scores]
    assert float(found["best_f1"]) == pytest.approx(max(thresholds), abs=1e-6)
    good = np.array([s for s, t in zip(said, truth, strict=True) if not t])
    defects = np.array([s for s, t in zip(said, truth, strict=True) if t])
    assert float(found["false_reject_rate"]) == pytest.approx(good.mean(), abs=1e-6)
    assert float(found["escape_rate"]) == pytest.approx(1 - defects.mean(), abs=1e-6)


def test_a_row_agrees_with_scikit_learn_on_the_pixels_of_scan(measured, by_the_verbs, parts: Path) -> None:
    _, out = measured
    work, rows, evaluation = by_the_verbs
    found = read_csv(out / "rows.csv")[0]
    truth, scores = [], []
    for name in (r["image"] for r in rows):
        kind, stem = Path(name).parts[-2], Path(name).stem
        mask = cv2.imread(str(parts / "ground_truth" / kind / f"{stem}_mask.png"), cv2.IMREAD_GRAYSCALE)
        if kind == "good":
            mask = np.zeros(PART_HW, np.uint8)
        if mask is not None:
            anomaly_map = cv2.imread(str(work / "results" / "maps" / f"{name}.tiff"), cv2.IMREAD_UNCHANGED)
            truth.append(mask.ravel() > 0)
            scores.append(cv2.resize(anomaly_map, PART_HW[::-1], interpolation=cv2.INTER_LINEAR).ravel())
    expected = sklearn_metrics.roc_auc_score(np.concatenate(truth), np.concatenate(scores))
    assert float(found["pixel_auroc"]) == pytest.approx(expected, abs=1e-5)
    assert float(found["aupro"]) == pytest.approx(evaluation["aupro"], abs=1e-6)
    assert int(found["masks"]) == evaluation["masked_defects"] == len(truth) - 3


def test_a_row_says_what_it_was_measured_on(measured) -> None:
    _, out = measured
    found = read_csv(out / "rows.csv")[0]
    counts = ("good_images", "defect_images", "test_good", "test_defects", "unreadable", "trained_on")
    assert [int(found[name]) for name in counts] == [3, 1, 3, 3, 0, 0]
    assert (found["dataset"], found["good_shots"], found["size"]) == ("parts", "3", str(SIZE))
    assert all(float(found[name]) > 0 for name in ("fit_s", "images_per_s", "model_mb"))


def test_a_cell_that_cannot_be_is_a_row_with_its_error(measured) -> None:
    done, out = measured
    assert done.returncode == 1
    row = read_csv(out / "rows.csv")[1]
    assert row["error"] == "parts has 5 good training images, not the 9 that were asked for"
    assert row["image_auroc"] == ""
    assert "1 of 2 cells failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_printed_and_written(measured) -> None:
    done, out = measured
    assert done.stdout == (out / "summary.md").read_text(encoding="utf-8")
    assert done.stdout.startswith("# Accuracy\n")
    summary = json.loads((out / "summary.json").read_text())
    assert [line["good_shots"] for line in summary["lines"]] == ["3", "9"]
    assert sorted(p.name for p in out.iterdir()) == ["rows.csv", "summary.json", "summary.md"]


def test_no_layout_is_a_wrong_usage(trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("benchmark", "accuracy", trained.good, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "a dataset holds train/good" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


# --- the loop, with cells that take no time ---

NO_COUNTS = {f.name: 1 for f in dataclasses.fields(Figures)}


class Silent:
    """A watcher that only remembers."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def start(self, cells: int, done: int) -> None:
        self.started = (cells, done)

    def step(self, text: str, done: int, total: int) -> None: ...

    def cell(self, cell: Cell) -> None: ...

    def row(self, row: Row, seconds: float) -> None:
        self.rows.append(row)


@pytest.fixture
def loop(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the loop with a given ``outcome(cell)``; returns the watcher."""

    def run(outcome: Callable[[Cell], Row], stopped: Callable[[], bool] = lambda: False, **options: object) -> Silent:
        monkeypatch.setattr(accuracy, "run_cell", lambda cell, *_: outcome(cell))
        monkeypatch.setattr(accuracy, "warm_up", lambda: None)
        watcher = Silent()
        config = AccuracyConfig(datasets=(parts,), output=tmp_path / "out", **{"shots": ("1", "2"), **options})
        run_accuracy(config, watcher, stopped)
        return watcher

    return run


def succeed(cell: Cell) -> Row:
    return Row(cell, Figures(**NO_COUNTS))


def test_what_was_measured_is_not_measured_again(loop) -> None:
    assert len(loop(succeed).rows) == 6
    again = loop(succeed)
    assert (again.rows, again.started) == ([], (6, 6))
    more = loop(succeed, shots=("2", "4", "1"))
    assert {row.cell.good_shots for row in more.rows} == {"4"}


def test_a_failed_cell_is_tried_again_and_only_that(loop, tmp_path: Path) -> None:
    first = loop(lambda cell: Row(cell, None, "no luck") if cell.seed == 1 else succeed(cell))
    assert len(first.rows) == 6
    second = loop(succeed)
    assert [row.cell.seed for row in second.rows] == [1, 1]
    rows = read_rows(tmp_path / "out" / "rows.csv")
    assert len(rows) == 6
    assert all(row.figures for row in rows.values())


def test_finished_cells_survive_an_interruption(loop, tmp_path: Path) -> None:
    def interrupted(cell: Cell) -> Row:
        if cell.seed == 2:
            raise KeyboardInterrupt
        return succeed(cell)

    with pytest.raises(KeyboardInterrupt):
        loop(interrupted)
    assert len(read_rows(tmp_path / "out" / "rows.csv")) == 2
    assert len(loop(succeed).rows) == 4


def test_an_interruption_that_a_library_took_for_an_error_is_no_row(loop, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop(lambda cell: Row(cell, None, "RuntimeError: interrupted"), stopped=lambda: True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"size_px": 128}, {"false_reject_rate": 0.2}])
def test_other_options_are_other_cells_in_the_same_file(loop, tmp_path: Path, options: dict[str, float]) -> None:
    loop(succeed)
    assert len(loop(succeed, **options).rows) == 6
    assert len(read_rows(tmp_path / "out" / "rows.csv")) == 12
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["lines"][0]["figures"]["fit_s"]["seeds"] == 3


@pytest.mark.parametrize(
    ("options", "words"), [({"size_px": 4}, "--size 4"), ({"false_reject_rate": 0.7}, "--false-reject-rate 0.7")]
)
def test_options_that_would_fail_in_every_cell_fail_before_the_first(
    loop, options: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        loop(succeed, **options)


def test_an_output_that_is_a_file_is_refused_at_once(loop, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out: is a file"):
        loop(succeed)


def test_a_bug_in_a_cell_is_its_error(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("inspectad.benchmark.cells.train", broken)
    config = AccuracyConfig(datasets=(parts,), shots=("2",), seeds=1)
    (cell,) = plan(config, {"parts": read_dataset(parts)})
    row = run_cell(cell, read_dataset(parts), config, None, lambda *_: None)
    assert row == Row(cell, None, "ZeroDivisionError: division by zero")


# --- the peer ---

PEER_STUB = """#!/usr/bin/env python3
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    print("anomalib 9.9")
    sys.exit()
job = json.loads(pathlib.Path(sys.argv[2]).read_text())
pathlib.Path(__file__).with_name("job.json").write_text(json.dumps({**job, "script": sorted(os.listdir())}))
if "out of memory" in __file__:
    sys.exit("torch.OutOfMemoryError: too large")
scores = [int("good" not in path) for path in job["test"]]
scores[-1] = 0
pathlib.Path(sys.argv[3]).write_text(json.dumps({"scores": scores, "fit_s": 2.0, "predict_s": 0.5, "version": "9.9"}))
"""


def write_peer(folder: Path) -> Path:
    folder.mkdir()
    stub = folder / "python"
    stub.write_text(PEER_STUB)
    stub.chmod(0o755)
    return stub


def run_peer(parts: Path, stub: Path, **options: object) -> Row:
    config = AccuracyConfig(datasets=(parts,), shots=("3",), defect_shots=(1,), seeds=1, peer=stub, **options)
    peer = peer_process.find_peer(stub)
    cell = plan(config, {"parts": read_dataset(parts)}, peer.version)[-1]
    return run_cell(cell, read_dataset(parts), config, peer, lambda *_: None)


def test_the_peer_gets_the_same_images_size_and_weights(parts: Path, tmp_path: Path, by_the_verbs) -> None:
    row = run_peer(parts, write_peer(tmp_path / "peer"), size_px=SIZE)
    job = json.loads((tmp_path / "peer" / "job.json").read_text())
    work, _, _ = by_the_verbs
    taught = sorted(Path(path) for path in job["train"])
    assert [p.name for p in taught] == sorted(p.name for p in (work / "good").iterdir())
    tested = sorted(Path(path).relative_to(parts / "test").as_posix() for path in job["test"])
    assert tested == sorted(
        p.relative_to(work / "test").as_posix().removeprefix("defects/") for p in (work / "test").rglob("*.png")
    )
    assert Path(job["weights"]) == embedded_weights("efficientnet_lite0")
    assert job["input_size_hw"] == [80, 96]
    assert job["script"] == ["job.json", "peer.py"]
    assert row.error == ""
    assert row.cell.method == "anomalib_patchcore"
    assert row.cell.version.endswith(", anomalib 9.9")
    assert row.figures is not None
    assert row.figures.image_auroc == pytest.approx(
        sklearn_metrics.roc_auc_score([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0])
    )
    assert (row.figures.fit_s, row.figures.images_per_s) == (2.0, 12.0)


def test_a_peer_that_fails_is_a_row_with_its_last_words(parts: Path, tmp_path: Path) -> None:
    row = run_peer(parts, write_peer(tmp_path / "out of memory"))
    assert row.error == "the peer failed: torch.OutOfMemoryError: too large"


def test_a_peer_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not run"):
        peer_process.find_peer(tmp_path / "python")
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho 'No module named x' >&2\nexit 1\n")
    stub.chmod(0o755)
    with pytest.raises(UsageError, match="No module named x; give a Python that has anomalib"):
        peer_process.find_peer(stub)


def test_the_peer_imports_nothing_of_ours() -> None:
    """It runs in another environment, and what is compared must not share code."""
    tree = ast.parse(Path(peer_process.__file__).with_name("peer.py").read_text(encoding="utf-8"))
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert "anomalib" in names
    assert not [name for name in names if name.startswith("inspectad")]


def test_our_weights_have_all_that_the_peer_uses_under_its_names() -> None:
    import timm
    from safetensors.torch import load_file

    ours = load_file(embedded_weights("efficientnet_lite0"))
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    used = ("conv_stem.", "bn1.", *(f"blocks.{i}." for i in range(5)))
    wanted = {k: v.shape for k, v in theirs.items() if k.startswith(used) and not k.endswith("num_batches_tracked")}
    assert {k: ours[k].shape for k in wanted} == wanted
