"""``--engine ray`` on a cluster of three nodes on this machine: the rows of the local engine, exactly once."""

import csv
import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pyarrow as pa
import pytest
import ray
from conftest import RunCli, Trained
from moto.server import ThreadedMotoServer
from pyarrow import parquet
from ray.cluster_utils import Cluster
from ray_helpers import BAD, Poisoned, Slow
from typer.testing import CliRunner

from inspectad import __version__
from inspectad.benchmark.cells import run_cell
from inspectad.benchmark.datasets import read_datasets
from inspectad.benchmark.plan import AccuracyConfig, plan
from inspectad.benchmark.rows import Row, read_rows
from inspectad.cli import app
from inspectad.errors import InspectadError, OutputError
from inspectad.progress import silent
from inspectad.ray_engine import scan as ray_scan
from inspectad.ray_engine.actor import InspectChunks
from inspectad.ray_engine.inspector import Inspector
from inspectad.ray_engine.job import Job
from inspectad.ray_engine.place import Place
from inspectad.ray_engine.scan import RayScanConfig, scan_on_ray

# Ray warns of itself.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # by Ray's default of 15, tests that train beside these left its workers no processor
    # For ray_helpers. No empty part, which would be the working folder.
    "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
}


class Nodes:
    """A head that has no processor to give, and nodes with one each."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill_one(self) -> None:
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)

    def replace(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on this machine, its address in the environment as a user sets it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="line")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def nodes(endpoint: str) -> Iterator[Nodes]:
    nodes = Nodes()
    ray.init(nodes.cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    yield nodes
    ray.shutdown()
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def line(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and defective parts in folders, under names that occur twice; files that are no images among them."""
    folder = tmp_path_factory.mktemp("line")
    for camera in ("cam1", "cam2", "Straße 3, links"):
        shutil.copytree(trained.good, folder / camera)
        shutil.copytree(trained.defects, folder / camera / "later")
    (folder / "cam1" / "empty.png").write_bytes(b"")
    (folder / "cam2" / "torn.png").write_bytes((trained.good / "good_0.png").read_bytes()[:999])
    (folder / "cam2" / ".hidden.png").write_bytes(b"")
    (folder / "cam1" / "nothing").mkdir()
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def expected(trained: Trained, line: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the local engine."""
    results = tmp_path_factory.mktemp("local")
    done = run_cli("scan", line, "-m", trained.model, "-o", results, "--heatmaps")
    assert done.returncode == 4, done.stderr
    return results


def read_csv(*shards: Path) -> list[dict[str, str]]:
    found = []
    for shard in shards:
        with shard.open(newline="", encoding="utf-8") as file:
            found += list(csv.DictReader(file))
    return sorted(found, key=lambda row: row["image"])


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "elapsed_ms"} for row in rows]


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def config(images: object, output: object, trained: Trained, **more: Any) -> RayScanConfig:
    return RayScanConfig(images=(str(images),), output=str(output), model=trained.model, **more)


def test_rows_and_heatmaps_are_those_of_the_local_engine(
    nodes: Nodes, trained: Trained, line: Path, expected: Path, tmp_path: Path
) -> None:
    summary = scan_on_ray(config(line, tmp_path, trained, heatmaps="all", maps=True))
    rows = read_csv(*(tmp_path / "rows").glob("*.csv"))
    reference = read_csv(expected / "results.csv")
    assert without_time(rows) == without_time(reference)
    assert all(float(row["elapsed_ms"]) > 0 for row in rows)
    assert summary.verdicts == Counter(row["verdict"] for row in reference)
    assert pictures(tmp_path / "heatmaps") == pictures(expected / "heatmaps")
    assert len(list((tmp_path / "maps").rglob("*.tiff"))) == 24
    assert [p.name for p in tmp_path.rglob(".*")] == [".inspectad-results"]  # nothing is left of the work

    with pytest.raises(OutputError, match=r"has rows of an earlier scan; go on with --resume"):
        scan_on_ray(config(line, tmp_path, trained))
    with pytest.raises(OutputError, match="give --format csv"):
        scan_on_ray(config(line, tmp_path, trained, resume=True, format="jsonl"))
    with pytest.raises(OutputError, match="another model or threshold"):
        scan_on_ray(config(line, tmp_path, trained, resume=True, threshold=99.0))
    with pytest.raises(OutputError, match=r"results\.csv: rows of a scan without --engine ray"):
        scan_on_ray(config(line, expected, trained))
    with pytest.raises(InspectadError, match="no images in there"):
        scan_on_ray(config(line / "cam1" / "nothing", tmp_path / "x", trained))


def test_a_killed_nodes_images_are_done_again_and_once(
    nodes: Nodes, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "in"
    images.mkdir()
    for i in range(64):
        (images / f"{i:03}.png").hardlink_to(trained.good / f"good_{i % 6}.png")
    monkeypatch.setattr(ray_scan, "CHUNK", 4)
    killed: list[int] = []

    def kill(_listed: int, inspected: int, _defects: int) -> None:
        if inspected >= 8 and not killed:
            nodes.kill_one()
            killed.append(inspected)

    summary = scan_on_ray(config(images, tmp_path / "out", trained), opened=Slow, on_progress=kill)
    nodes.replace()
    rows = read_csv(*(tmp_path / "out" / "rows").glob("*.csv"))
    assert killed
    assert killed[0] < 64
    assert [row["image"] for row in rows] == [f"{i:03}.png" for i in range(64)]
    assert summary.verdicts == {"OK": 64}


def test_poison_costs_one_row_and_resume_goes_on(nodes: Nodes, trained: Trained, line: Path, tmp_path: Path) -> None:
    images = tmp_path / "in"
    shutil.copytree(line / "cam1", images)
    shutil.copy(images / "good_0.png", images / f"{BAD}.png")
    summary = scan_on_ray(config(images, tmp_path / "out", trained, format="jsonl"), opened=Poisoned)
    rows = _json(tmp_path / "out")
    bad = {r["image"]: r["error"] for r in rows if r["verdict"] == "UNREADABLE"}
    assert bad.keys() == {f"{BAD}.png", "empty.png"}
    assert bad[f"{BAD}.png"] == "the process that decoded it died (signal 11, SIGSEGV); look at this file"
    assert summary.verdicts.total() == len(rows) == 10

    shutil.copytree(trained.defects, images / "more")
    again = scan_on_ray(config(images, tmp_path / "out", trained, format="jsonl", resume=True))
    assert again.verdicts == {"NG": 2}
    assert again.earlier == summary.verdicts
    later = _json(tmp_path / "out")
    assert sorted(r["image"] for r in later) == sorted([*(r["image"] for r in rows), *_names(images / "more", "more/")])


def test_what_ends_a_job_says_which_node_and_what_to_do(nodes: Nodes, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "heatmaps").write_bytes(b"")  # a file where a folder should be
    with pytest.raises(OutputError, match=r"heatmaps.*cannot be written"):
        scan_on_ray(config(trained.good, tmp_path / "out", trained, heatmaps="all"))
    assert not (tmp_path / "out" / "rows").exists() or not list((tmp_path / "out" / "rows").iterdir())

    def start(job: Job) -> None:
        InspectChunks(__version__, "0" * 12, ray.put(job), None, Inspector)(pa.table({"names": [[b"a.png"]]}))

    job = Job(
        model=b"", device="cpu", workers=1, root=Place(str(trained.good)), output=Place(str(tmp_path)), marker="x",
        kind="csv", heatmaps="", maps=False, threshold=None, tile=None,
    )  # fmt: skip
    with pytest.raises(InspectadError, match=r"the node \S+ does not see the output folder there; all nodes must"):
        start(job)
    with pytest.raises(InspectadError, match=r"the node \S+ does not see the images there; all nodes must"):
        start(dataclasses.replace(job, root=Place("/no/such")))


def _json(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for f in (output / "rows").glob("*.jsonl") for line in f.read_text().splitlines()]


def _names(folder: Path, prefix: str) -> list[str]:
    return [f"{prefix}{p.name}" for p in folder.iterdir()]


def test_s3_in_and_out_as_parquet_by_the_command_line(
    nodes: Nodes, endpoint: str, trained: Trained, line: Path, expected: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    (tmp_path / "cv2.py").write_text("raise RuntimeError('a file beside the images was run')")  # found by a review
    beside: dict[str, Any] = {"cwd": tmp_path, "env": {"PYTHONSAFEPATH": "1"}}  # which the installed command implies
    s3 = boto3.client("s3")
    for file in (p for p in line.rglob("*") if p.is_file()):
        s3.put_object(Bucket="line", Key=f"day/{file.relative_to(line).as_posix()}", Body=file.read_bytes())
    arguments = ("scan", "s3://line/day", "-o", "s3://line/day/out", "-m", trained.model, "--heatmaps", "ng")
    ray_options = ("--engine", "ray", "--format", "parquet")
    done = run_cli(*arguments, *ray_options, "--address", nodes.cluster.address, **beside)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert "26 images in" in done.stderr
    assert "wrote s3://line/day/out/rows/*.parquet, s3://line/day/out/heatmaps" in done.stderr
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="line", Prefix="day/out/")["Contents"]]
    (shard,) = [k for k in keys if k.endswith(".parquet")]
    with fsspec.open(f"s3://line/{shard}", "rb") as file:
        rows = sorted(parquet.read_table(file).to_pylist(), key=lambda row: row["image"])
    reference = read_csv(expected / "results.csv")
    assert [_as_csv(row) for row in rows] == without_time(reference)
    drawn = {k.removeprefix("day/out/heatmaps/") for k in keys if "/heatmaps/" in k}
    assert drawn == {f"{row['image']}.png" for row in reference if row["verdict"] == "NG"}

    # By a Ray of its own on this machine; results are no input.
    again = run_cli(*arguments, *ray_options, "--resume", "--fail-on-defect", **beside)
    assert again.returncode == 3, again.stderr
    assert "26 rows were there already" in again.stderr
    assert "0 images in" in again.stderr
    assert [line for line in (done.stderr + again.stderr).splitlines() if "ray" in line.lower()] == []  # it is quiet


def _as_csv(row: dict[str, Any]) -> dict[str, str]:
    boxes = ";".join(" ".join(map(str, box)) for box in row["boxes"])
    cells = {**row, "boxes": boxes}
    return {k: "" if v is None else str(v) for k, v in cells.items() if k != "elapsed_ms"}


def test_benchmark_accuracy_has_the_same_cells(nodes: Nodes, trained: Trained, tmp_path: Path) -> None:
    few = ["--shots", "1,99", "--seeds", "1", "--size", "64", "--engine", "ray", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["benchmark", "accuracy", str(trained.root), *few])
    assert done.exit_code == 1, done.output  # there are no 99 good images
    config = AccuracyConfig(datasets=(trained.root,), shots=("1", "99"), seeds=1, size_px=64)
    datasets = read_datasets(config.datasets)
    expected = [run_cell(cell, datasets[cell.dataset], config, None, silent) for cell in plan(config, datasets)]
    rows = read_rows(tmp_path / "out" / "rows.csv")
    assert [rows[row.cell].error for row in expected] == [row.error for row in expected]
    assert [bool(row.error) for row in expected] == [False, True]
    assert _figures(rows[expected[0].cell]) == _figures(expected[0])
    lines = json.loads((tmp_path / "out" / "summary.json").read_text())["lines"]
    assert [line["good_shots"] for line in lines] == ["1", "99"]


def _figures(row: Row) -> dict[str, Any]:
    assert row.figures is not None
    found = dataclasses.asdict(row.figures)
    return {k: pytest.approx(v, rel=1e-5, nan_ok=True) for k, v in found.items() if k not in ("fit_s", "images_per_s")}
