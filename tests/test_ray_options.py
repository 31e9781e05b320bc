"""``--engine ray`` where it cannot be: options that make no sense, no Ray, no cluster. And the pure parts of shards."""

import io
import json
from pathlib import Path

import pytest
from conftest import RunCli, Trained
from pyarrow import parquet

from inspectad.errors import InspectadError, OutputError, UnreadableImageError, UsageError
from inspectad.lock import locked
from inspectad.ray_engine.place import Place, absolute
from inspectad.ray_engine.scan import workers_of_cluster
from inspectad.ray_engine.session import check_version, meaning
from inspectad.ray_engine.shards import encode_shard, read_shards, remove_killed, shard_name, stored_name
from inspectad.records import Box, Inspection, Verdict
from inspectad.results import COLUMNS, format_row

ROWS = (
    Inspection(
        image="a/b.png", verdict=Verdict.NG, score=2.0, threshold=1.25, severity=1.6, area_px=12,
        boxes=(Box(1, 2, 3, 4), Box(5, 6, 7, 8)), peak_x=2, peak_y=3, elapsed_ms=1.5, model="0" * 12,
    ),
    Inspection(image="caf\udce9, \"x\"\n.png", verdict=Verdict.UNREADABLE, model="0" * 12, error="empty"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--watch"], "--watch: not on Ray"),
        (["--workers", "3", "--batch-size", "2"], "--batch-size, --workers: not on Ray"),
        (["--device", "cuda:1"], "Ray gives each worker a GPU"),
        (["--address", "ray://head:10001"], "give auto or HOST:PORT"),
        (["--address", "head"], "give auto or HOST:PORT"),
    ],
)
def test_what_makes_no_sense_on_ray_is_refused(
    trained: Trained, run_cli: RunCli, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = run_cli("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--engine", "ray", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_needs_ray_says_so(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    scan = ("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out")
    assert "add --engine ray" in run_cli(*scan, "--address", "auto").stderr
    assert "--format parquet: not without --engine ray" in run_cli(*scan, "--format", "parquet").stderr
    assert "name folders or URLs instead of -" in run_cli("scan", "-", "--engine", "ray").stderr
    nobody = run_cli(*scan, "--engine", "ray", "--address", "127.0.0.1:9")
    assert (nobody.returncode, "127.0.0.1:9: nobody answers there" in nobody.stderr) == (1, True)
    peer = run_cli("benchmark", "accuracy", trained.root, "--engine", "ray", "--peer", "python")
    assert (peer.returncode, "--peer: not on Ray" in peer.stderr) == (2, True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "ray.py").write_text("raise ImportError('No module named ray')")
    without = run_cli(*scan, "--engine", "ray", env={"PYTHONPATH": str(tmp_path / "site")})
    assert without.returncode == 1
    assert "pip install 'inspectad[ray]'" in without.stderr
    assert not (tmp_path / "out").exists()


def test_an_output_that_another_scan_writes_to_is_refused(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        done = run_cli("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--engine", "ray")
    assert done.returncode == 1
    assert "another inspectad is writing there" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_killed_jobs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = {"20260101-000000-abcdef-000001.csv", ".hidden", "notes.txt"}
    for name in (*kept, ".20260101-000000-abcdef", f".inspectad-{'0' * 32}.tmp"):
        (tmp_path / name).touch()
    remove_killed(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == kept


def test_an_object_may_be_called_what_it_likes() -> None:
    """Found by a review: ``::`` was taken for a chain of file systems."""
    place = Place("memory://bucket/in") / "b::file:///etc/c.png"
    place.write(b"data")
    assert place.read() == b"data"
    assert place.store[1].endswith("/in/b::file:///etc/c.png")


def test_a_store_that_does_not_answer_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("memory://bucket/missing.png")
    with pytest.raises(UnreadableImageError, match="No such file"):
        place.read()

    def refuse(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", refuse)
    with pytest.raises(InspectadError, match=r"cannot be read \(PermissionError: Access Denied\); check") as caught:
        place.read()
    assert not isinstance(caught.value, UnreadableImageError)


def test_a_node_with_another_version_is_named() -> None:
    with pytest.raises(InspectadError, match=r"has inspectad .*, this machine 99; install the same on all"):
        check_version("99")


def test_what_an_error_of_a_task_means() -> None:
    ours = OutputError("disk full")
    wrapped = RuntimeError("a traceback")
    wrapped.__cause__ = ours
    assert meaning(wrapped) is ours
    missing = meaning(RuntimeError("ModuleNotFoundError: No module named 'inspectad'"))
    assert isinstance(missing, InspectadError)
    assert "pip install 'inspectad[ray]' on each" in str(missing)
    other = ValueError("a bug")
    assert meaning(other) is other


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("file:///data/x", "/data/x"),
        ("/data/x/", "/data/x"),
        ("memory://x", "memory://x"),
    ],
)
def test_addresses(text: str, place: str) -> None:
    assert absolute(text) == place


def test_relative_paths_are_of_the_folder_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("images") == str(tmp_path / "images")
    with pytest.raises(UsageError, match="instance s3://bucket"):
        _ = Place("nosuch://x").store


def test_a_shard_of_csv_and_of_json_lines_is_what_the_local_engine_writes() -> None:
    csv_rows = [format_row(row, "csv") for row in ROWS]
    assert encode_shard(csv_rows, "csv") == (",".join(COLUMNS) + "\n").encode() + b"".join(csv_rows)
    json_rows = [format_row(row, "jsonl") for row in ROWS]
    assert encode_shard(json_rows, "jsonl") == b"".join(json_rows)


def test_a_shard_of_parquet_holds_the_same_values() -> None:
    data = encode_shard([format_row(row, "jsonl") for row in ROWS], "parquet")
    rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    assert rows[0] == json.loads(format_row(ROWS[0], "jsonl"))
    assert rows[1] == {**json.loads(format_row(ROWS[1], "jsonl")), "image": 'caf\\xe9, "x"\n.png'}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_rows_are_read_again_from_all_shards(tmp_path: Path, kind: str) -> None:
    records = [format_row(row, "csv" if kind == "csv" else "jsonl") for row in ROWS]
    shards = [Place(str(tmp_path / shard_name("run", i, kind))) for i in range(2)]
    for shard, record in zip(shards, records, strict=True):
        shard.write(encode_shard([record], kind))
    earlier = read_shards(shards, kind)
    assert earlier.images == {stored_name(r.image) if kind == "parquet" else r.image for r in ROWS}
    assert earlier.verdicts == {"NG": 1, "UNREADABLE": 1}
    assert earlier.models == {"0" * 12}
    assert earlier.thresholds == {"1.25"}
    shards[0].path.write_bytes(b"not ours\n")
    with pytest.raises(OutputError, match="not as"):
        read_shards(shards, kind)


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")  # of itself
@pytest.mark.parametrize(
    ("device", "nodes", "expected"),
    [
        ("auto", [{"CPU": 8.0}, {"CPU": 4.0}, {}], ("cpu", 12, 1, 0)),
        ("cpu", [{"CPU": 8.0, "GPU": 2.0}], ("cpu", 8, 1, 0)),
        ("auto", [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 6.0, "GPU": 2.0}, {"CPU": 64.0}], ("auto", 6, 3, 1)),
        ("tensorrt", [{"CPU": 2.0, "GPU": 4.0}], ("tensorrt", 4, 1, 1)),
        ("cuda", [{"CPU": 8.0}], None),
    ],
)
def test_workers_are_what_the_nodes_have(
    device: str, nodes: list[dict[str, float]], expected: tuple[str, int, int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    found = [{"Alive": True, "Resources": n} for n in nodes] + [{"Alive": False, "Resources": {"CPU": 99.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    if expected is None:
        with pytest.raises(UsageError, match="no node of the cluster has a GPU"):
            workers_of_cluster(device)
        return
    workers = workers_of_cluster(device)
    assert (workers.device, workers.actors, workers.cpus, workers.gpus) == expected


@pytest.mark.parametrize(("cores", "chunk"), [(1, 16), (16, 16), (17, 32), (740, 256)])
def test_large_clusters_get_larger_chunks(cores: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver can hand out only so many a second."""
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cores)}}])
    assert workers_of_cluster("auto").chunk == chunk


def test_a_cluster_without_a_processor_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {}}])
    with pytest.raises(UsageError, match="no node of the cluster has a processor"):
        workers_of_cluster("auto")
