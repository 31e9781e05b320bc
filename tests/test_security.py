"""What SECURITY.md promises of files that come from anybody: output folders, models, weights, names."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import Trained
from onnx import TensorProto, helper
from rich.console import Console
from test_model_file import MANIFEST, small_graph

from inspectad import console, detector
from inspectad.benchmark.tables import markdown_table
from inspectad.demo import render_folders
from inspectad.detector import OnnxDetector, create_session
from inspectad.errors import ModelFileError, OutputError
from inspectad.model_file import append_manifest, write_model
from inspectad.nn.backbone import load_backbone
from inspectad.results import CSV_HEADER
from inspectad.scan import ScanConfig, scan

LINKS = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


@pytest.fixture(scope="module")
def loaded(trained: Trained) -> OnnxDetector:
    return OnnxDetector.load(trained.model, "cpu")


@pytest.fixture
def line(trained: Trained, tmp_path: Path) -> Path:
    """Two images, in the folder itself and in another below it."""
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "line" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((trained.good / "good_0.png").read_bytes())
    return tmp_path / "line"


def run(loaded: OnnxDetector, line: Path, output: Path, *, pictures: bool = True, **options: Any) -> None:
    heatmaps = "all" if pictures else ""
    scan(ScanConfig(images=(str(line),), output=output, heatmaps=heatmaps, maps=pictures, **options), loaded)


@LINKS
@pytest.mark.parametrize("planted", ["heatmaps", "maps", "heatmaps/sub"])
def test_a_linked_folder_in_the_output_is_not_followed(
    planted: str, loaded: OnnxDetector, line: Path, tmp_path: Path
) -> None:
    outside, output = tmp_path / "outside", tmp_path / "results"
    outside.mkdir()
    (output / planted).parent.mkdir(parents=True)
    (output / planted).symlink_to(outside)
    with pytest.raises(OutputError, match="a link leads out of the output folder; remove it"):
        run(loaded, line, output)
    assert not list(outside.iterdir())


@LINKS
@pytest.mark.parametrize("name", ["results.csv", "results.jsonl"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_linked_results_file_is_neither_emptied_nor_written_on(
    name: str, resume: bool, loaded: OnnxDetector, line: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(CSV_HEADER)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / name).symlink_to(precious)
    with pytest.raises(OutputError, match=f"{name}: a link leads out of the output folder"):
        run(loaded, line, tmp_path / "results", resume=resume)
    assert precious.read_bytes() == CSV_HEADER


@LINKS
def test_a_linked_heatmap_is_replaced_and_what_it_leads_to_stays(
    loaded: OnnxDetector, line: Path, tmp_path: Path
) -> None:
    precious, heatmap = tmp_path / "precious", tmp_path / "results/heatmaps/a.png.png"
    precious.write_bytes(b"mine")
    heatmap.parent.mkdir(parents=True)
    heatmap.symlink_to(precious)
    run(loaded, line, tmp_path / "results")
    assert precious.read_bytes() == b"mine"
    assert not heatmap.is_symlink()
    assert cv2.imread(str(heatmap)).shape == (160, 192, 3)


@LINKS
def test_the_output_folder_itself_may_be_a_link_and_hold_links_to_itself(
    loaded: OnnxDetector, line: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk/other").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/heatmaps").symlink_to(tmp_path / "disk/other")
    run(loaded, line, tmp_path / "results")
    assert (tmp_path / "disk/other/sub/b.png.png").is_file()
    assert (tmp_path / "disk/results.csv").read_bytes().count(b"\n") == 3


@LINKS
def test_a_linked_folder_in_a_demo_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/.inspectad-demo").touch()
    (tmp_path / "demo/good").symlink_to(tmp_path / "outside")
    with pytest.raises(OutputError, match="a link leads out of the output folder"):
        render_folders(tmp_path / "demo")
    assert not list((tmp_path / "outside").iterdir())


@LINKS
def test_files_of_a_model_that_are_links_are_replaced(tmp_path: Path) -> None:
    """As all files that are written whole, exports among them."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / "model").mkdir()
    for name in ("model.onnx", "manifest.yaml", "weights.safetensors"):
        (tmp_path / "model" / name).symlink_to(precious)
    write_model(tmp_path / "model", b"graph", MANIFEST, b"weights")
    assert precious.read_bytes() == b"mine"
    assert (tmp_path / "model" / "model.onnx").read_bytes() == b"graph"


def test_names_in_an_earlier_results_file_delete_nothing_outside(
    loaded: OnnxDetector, line: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    (output / "heatmaps").mkdir(parents=True)
    victims = [tmp_path / "victim.png", tmp_path / "deep/victim.png"]
    for victim in victims:
        victim.parent.mkdir(exist_ok=True)
        victim.write_bytes(b"mine")
    names = ["../../victim", str(tmp_path / "victim"), "../../deep/victim", "./../../victim", "a\0b", "../../../" * 9]
    rows = "".join(f"{name},OK,1.0,1.0,1.0,0,,1,1,1.0,0123456789ab,\n" for name in names)
    (output / "results.csv").write_bytes(CSV_HEADER + rows.encode())
    run(loaded, line, output)
    assert [victim.read_bytes() for victim in victims] == [b"mine", b"mine"]
    assert (output / "results.csv").read_bytes().count(b"\n") == 3


def _external(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("int64_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def _subgraph(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["all"], ["never"], body=body))


def _sparse(model: onnx.ModelProto) -> None:
    """Some bytes that the runtime makes 1.6 GB of when it loads them."""
    values = helper.make_tensor("dense", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("at", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [20_000, 20_000]))


def _constant_sparse(model: onnx.ModelProto) -> None:
    _sparse(model)
    (sparse,) = model.graph.sparse_initializer
    model.graph.node.append(helper.make_node("Constant", [], ["dense"], sparse_value=sparse))
    del model.graph.sparse_initializer[:]


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "weights beside the model": (lambda m: _external(m, "w.bin"), "weights in other files"),
    "weights above it": (lambda m: _external(m, "../w.bin"), "weights in other files"),
    "weights anywhere": (lambda m: _external(m, "/etc/passwd"), "weights in other files"),
    "an address in memory": (lambda m: _external(m, "*/_ORT_MEM_ADDR_/*"), "weights in other files"),
    "a location alone": (lambda m: setattr(m.graph.initializer[0], "data_location", 1), "weights in other files"),
    "external weights in a node": (
        lambda m: m.graph.node.append(
            helper.make_node("Constant", [], ["c"], value=TensorProto(data_type=1, dims=[1], data_location=1))
        ),
        "weights in other files",
    ),
    "a compiled engine": (
        lambda m: m.graph.node.append(
            helper.make_node("EPContext", [], ["e"], domain="com.microsoft", ep_cache_context="../engine")
        ),
        "operators of com.microsoft",
    ),
    "an operator of a library": (
        lambda m: m.graph.node.append(helper.make_node("Run", [], ["e"], domain="evil")),
        "operators of evil",
    ),
    "a loop": (_subgraph, "subgraphs"),
    "a sparse weight": (_sparse, "sparse tensors"),
    "a sparse constant": (_constant_sparse, "sparse tensors"),
    "a function": (
        lambda m: m.functions.append(helper.make_function("f", "g", [], [], [], [helper.make_opsetid("", 18)])),
        "functions",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_model_that_reaches_out_of_its_file_never_reaches_the_runtime(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = HOSTILE[what]
    model = onnx.load_from_string(small_graph())
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(append_manifest(model.SerializeToString(), MANIFEST))  # with checksums that fit
    monkeypatch.setattr(detector, "create_session", lambda *_, **__: pytest.fail("the runtime saw it"))
    with pytest.raises(ModelFileError, match=f"its graph has {message}, which no model of inspectad has; refused"):
        OnnxDetector.load(path, "cpu")


def test_a_damaged_model_never_reaches_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(append_manifest(small_graph(), MANIFEST))
    data[len(data) // 8] ^= 1
    (tmp_path / "model.onnx").write_bytes(data)
    monkeypatch.setattr(detector, "create_session", lambda *_, **__: pytest.fail("the runtime saw it"))
    with pytest.raises(ModelFileError, match="damaged"):
        OnnxDetector.load(tmp_path / "model.onnx", "cpu")


def test_the_runtimes_own_format_is_not_taken(tmp_path: Path) -> None:
    """It is another program's view of a file: what was looked at as ONNX must be run as ONNX."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "x.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(small_graph(), options, ["CPUExecutionProvider"])
    data = (tmp_path / "x.ort").read_bytes()
    assert ort.InferenceSession(data, providers=["CPUExecutionProvider"]).get_outputs()
    with pytest.raises(ModelFileError):
        create_session(data)


def test_a_claim_of_terabytes_in_a_model_takes_no_memory(tmp_path: Path) -> None:
    model = onnx.load_from_string(small_graph())
    model.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[10**6, 10**6]))
    model.graph.node.append(helper.make_node("Add", ["x", "huge"], ["y"]))
    (tmp_path / "model.onnx").write_bytes(append_manifest(model.SerializeToString(), MANIFEST))
    with pytest.raises(ModelFileError, match="not an ONNX model, or a damaged one"):
        OnnxDetector.load(tmp_path / "model.onnx", "cpu")


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [False, True])
def test_weights_that_are_a_program_are_not_run(zipped: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "was_run"
    program = pickle.dumps({"conv1.weight": _Evil(marker)}, protocol=2)
    pickle.loads(program)
    assert marker.is_dir()  # it would run
    marker.rmdir()
    path.write_bytes(program)
    if zipped:
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("archive/data.pkl", program)
            packed.writestr("archive/version", b"3\n")
    with pytest.raises(Exception, match="not weights of this backbone"):
        load_backbone("resnet18", path)
    assert not marker.exists()


def test_weights_that_unpack_to_much_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        packed.writestr("archive/data/0", bytes(10**8))
    with pytest.raises(Exception, match="it would unpack to 1000000"):
        load_backbone("resnet18", path)


HOSTILE_TEXT = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] [/nothing] \u202e\x9b31m.png"


def test_names_reach_a_terminal_as_letters_only() -> None:
    shown = io.StringIO()
    Console(file=shown, force_terminal=True, highlight=False, soft_wrap=True).print(console.plain(HOSTILE_TEXT))
    text = shown.getvalue().removesuffix("\n")
    assert text.isprintable()  # neither escape sequences nor a change of direction
    assert "[bold red]x[/] [/nothing]" in text  # and no markup was obeyed


def test_progress_shows_a_name_that_looks_like_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=300))
    with console.step_progress() as progress:
        progress.step("explaining", 0, 2, HOSTILE_TEXT)
        progress.step(HOSTILE_TEXT, 1, 2)
        assert progress.bar is not None
        progress.bar.refresh()
    assert "\x1b]0;owned" not in shown.getvalue()
    assert "[/nothing]" in shown.getvalue()


def test_html_in_a_table_of_the_benchmark_is_text() -> None:
    (_, _, row) = markdown_table(["set"], [["<script>alert(1)</script>|\nx & y"]]).splitlines()
    assert row == "| &lt;script&gt;alert(1)&lt;/script&gt;\\| x &amp; y |"


def test_a_formula_in_a_table_of_the_benchmark_is_text_and_reads_back(tmp_path: Path) -> None:
    from inspectad.benchmark.rows import Cell, Row, put_row, read_rows

    cell = Cell(
        dataset="=cmd()", method="memory_bank", good_shots="1", defect_shots=0, seed=0, size="auto", asked_rate=0.1,
        images="0", version="1",
    )  # fmt: skip
    row = Row(cell, None, "@SUM(1)")
    put_row(tmp_path / "rows.csv", row)
    line = (tmp_path / "rows.csv").read_text().splitlines()[1]
    assert line.startswith("'=cmd()")
    assert line.endswith(",'@SUM(1)")
    assert read_rows(tmp_path / "rows.csv") == {cell: row}


def test_a_heatmap_of_a_hostile_name_stays_below_the_output(
    loaded: OnnxDetector, trained: Trained, tmp_path: Path
) -> None:
    image = tmp_path / "elsewhere" / "=x.png"
    image.parent.mkdir()
    image.write_bytes((trained.good / "good_0.png").read_bytes())
    run(loaded, image, tmp_path / "results")
    assert np.asarray(cv2.imread(str(tmp_path / "results/heatmaps/=x.png.png"))).shape == (160, 192, 3)
    assert (tmp_path / "results/results.csv").read_text().splitlines()[1].startswith("./=x.png,")
    before = {path for path in tmp_path.rglob("*") if "results" not in path.parts}
    run(loaded, image, tmp_path / "results", resume=True)  # found again by its name, so no second row
    assert (tmp_path / "results/results.csv").read_text().count("\n") == 2
    assert {path for path in tmp_path.rglob("*") if "results" not in path.parts} == before


@LINKS
def test_leftovers_behind_a_linked_folder_stay(loaded: OnnxDetector, line: Path, tmp_path: Path) -> None:
    """Found by a review: they may be files that another scan is writing."""
    (tmp_path / "other").mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "heatmaps").symlink_to(tmp_path / "other")
    temporary = tmp_path / "other" / f".inspectad-{'0' * 32}.tmp"
    temporary.touch()
    run(loaded, line, tmp_path / "results", pictures=False)
    assert temporary.exists()
