"""`benchmark speed`: figures against closed forms, what is measured, written and refused. No test asks how fast."""

import itertools
import json
import math
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad.benchmark import speed_models, speed_plan, speed_plot
from inspectad.benchmark.speed import run_speed
from inspectad.benchmark.speed_images import ManyNames, from_all_over, take_sample
from inspectad.benchmark.speed_machine import parse_cpuinfo
from inspectad.benchmark.speed_measure import _ScanRun
from inspectad.benchmark.speed_plan import SpeedConfig, parse_device_list, parse_names, parse_numbers, working_devices
from inspectad.benchmark.speed_process import cold_start, peak_memory
from inspectad.benchmark.speed_ratios import (
    Timing,
    cores_used,
    images_per_s_at_best,
    latency,
    median,
    ratios,
    stages_of,
)
from inspectad.benchmark.speed_report import brief, tables
from inspectad.benchmark.speed_stages import Stages, time_work
from inspectad.benchmark.speed_trunk import cut_trunk
from inspectad.detector import OnnxDetector, create_session
from inspectad.errors import InspectadError, OutputError, UnreadableImageError, UsageError
from inspectad.image_files import ImageFile, find_images
from inspectad.model_file import extract_manifest
from inspectad.scan import ScanConfig, scan

QUICK = settings(deadline=None, max_examples=60)
ALL = stages_of("all")
TIMINGS = st.fixed_dictionaries({name: st.builds(Timing, st.floats(0.1, 1e4), st.floats(0.01, 1e3)) for name in ALL})


# What the figures mean


def test_the_stages_of_a_pipeline() -> None:
    assert stages_of("off") == ("read", "decode", "resize", "infer", "judge")
    assert ALL == ("read", "decode", "resize", "infer", "judge", "heatmap", "encode", "write")


def test_two_equal_stages_that_share_the_cores_reach_half_of_each() -> None:
    stages = {"decode": Timing(100, 20), "infer": Timing(100, 20)}  # two cores: 20 ms each is 100 images/s
    found = ratios(50.0, stages, 2, on_gpu=False)
    assert found.bound_images_per_s == pytest.approx(50)
    assert (found.efficiency, found.efficiency_limit) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (found.of_bound, found.of_turns) == (pytest.approx(1), pytest.approx(1))


def test_a_gpu_takes_its_stage_off_the_cores() -> None:
    stages = {"decode": Timing(100, 20), "infer": Timing(80, 5)}
    found = ratios(60.0, stages, 2, on_gpu=True)
    assert (found.bottleneck, found.slowest) == ("infer (GPU)", "infer")
    assert (found.bound_images_per_s, found.efficiency_limit) == (80, 1)
    assert found.efficiency == found.of_bound == found.of_turns == pytest.approx(0.75)
    slow_cores = ratios(60.0, {**stages, "decode": Timing(50, 40)}, 2, on_gpu=True)
    assert (slow_cores.bottleneck, slow_cores.bound_images_per_s) == ("decode", pytest.approx(50))


@QUICK
@given(TIMINGS, st.floats(0.1, 1e4), st.integers(1, 64))
def test_ratios_on_a_cpu_equal_their_definitions(stages: dict[str, Timing], rate: float, cores: int) -> None:
    found = ratios(rate, stages, cores, on_gpu=False)
    alone = min(t.images_per_s for t in stages.values())
    bound = cores / (sum(t.core_ms for t in stages.values()) / 1000)
    assert found.slowest_images_per_s == alone == stages[found.slowest].images_per_s
    assert stages[found.bottleneck].core_ms == max(t.core_ms for t in stages.values())
    assert found.bound_images_per_s == pytest.approx(bound)
    assert found.efficiency == pytest.approx(rate / alone)
    assert found.efficiency_limit == pytest.approx(bound / alone)
    assert found.of_bound == pytest.approx(found.efficiency / found.efficiency_limit)
    assert found.of_turns == pytest.approx(rate * sum(1 / t.images_per_s for t in stages.values()))


@QUICK
@given(TIMINGS, st.integers(1, 64))
def test_the_bound_with_a_gpu_is_the_smaller_of_gpu_and_cores(stages: dict[str, Timing], cores: int) -> None:
    others = sum(t.core_ms for name, t in stages.items() if name != "infer") / 1000
    expected = min(stages["infer"].images_per_s, cores / others)
    assert images_per_s_at_best(stages, cores, on_gpu=True) == pytest.approx(expected)
    assert ratios(1.0, stages, cores, on_gpu=True).bottleneck == (
        "infer (GPU)"
        if stages["infer"].images_per_s <= cores / others
        else max((n for n in stages if n != "infer"), key=lambda n: stages[n].core_ms)
    )


@QUICK
@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=300))
def test_latencies_are_quantiles_in_milliseconds(seconds: list[float]) -> None:
    found = latency(seconds)

    def quantile(share: float) -> float:
        rank = sorted(seconds)
        at = share * (len(rank) - 1)
        low, high = math.floor(at), math.ceil(at)
        return 1000 * (rank[low] + (at - low) * (rank[high] - rank[low]))

    assert (found.p50_ms, found.p95_ms, found.p99_ms) == tuple(pytest.approx(quantile(q)) for q in (0.5, 0.95, 0.99))
    assert found.runs == len(seconds)


def test_medians_are_of_each_figure_by_itself() -> None:
    assert median([Timing(1, 30), Timing(2, 10), Timing(9, 20)]) == Timing(2, 20)
    assert cores_used(Timing(50, 30)) == pytest.approx(1.5)


# Timing


def test_work_goes_round_all_images_in_all_threads() -> None:
    seen: list[int] = []
    threads: set[int] = set()
    together = threading.Barrier(3)

    def work(i: int) -> None:
        if len(threads) < 3 and threading.get_ident() not in threads:
            threads.add(threading.get_ident())
            together.wait(20)
        seen.append(i)
        time.sleep(0.001)

    found = time_work(work, 4, 3, 0.1)
    assert len(threads) == 3
    counts = [seen.count(i) for i in range(4)]
    assert max(counts) - min(counts) <= 1
    assert min(counts) >= 1
    assert 0 < found.images_per_s < 3 / 0.001
    assert 0 <= found.core_ms < 1000


def test_each_thread_does_one_image_at_least() -> None:
    done = itertools.count()
    time_work(lambda _: next(done), 1, 2, 0.0)
    assert next(done) == 2


def test_an_error_of_a_stage_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        time_work(lambda i: 1 // i, 2, 2, 0.05)


# Options


@pytest.mark.parametrize(
    ("text", "names"), [("auto", ("auto",)), ("cpu", ("cpu",)), (" cpu, cuda:1,cpu ", ("cpu", "cuda:1"))]
)
def test_lists_of_devices(text: str, names: tuple[str, ...]) -> None:
    assert parse_device_list(text) == names


@pytest.mark.parametrize("text", ["", "gpu", "cpu,gpu", "auto,cpu", "cuda:x", ","])
def test_devices_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_device_list(text)


@pytest.mark.parametrize("text", ["", "0", "1,", "1025", "-1", "1.5", "x", "٣", "99999999999999999999"])
def test_batch_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--batch-sizes"):
        speed_plan.parse_batch_sizes(text)


def test_names_and_numbers() -> None:
    assert parse_numbers(None, 1, 9, "--x") == parse_names(None, ("a",), "--x") == ()
    assert parse_numbers("4, 1,4", 1, 9, "--x") == (4, 1)
    assert parse_names("fp16,fp32,fp16", speed_plan.PRECISIONS, "--precisions") == ("fp16", "fp32")
    with pytest.raises(UsageError, match="no fp8 there; there are: fp32, fp16, int8"):
        parse_names("fp32,fp8", speed_plan.PRECISIONS, "--precisions")
    with pytest.raises(UsageError, match="--sizes 63"):
        speed_plan.parse_sizes("63")


def test_devices_that_do_not_work_are_left_out_with_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_plan, "gpu_problem", lambda: "")
    monkeypatch.setattr(speed_plan, "try_provider", lambda device: "no libnvinfer" if device == "tensorrt" else "")
    assert working_devices(("auto",)) == (["cpu", "cuda"], {"tensorrt": "no libnvinfer"})
    monkeypatch.setattr(speed_plan, "gpu_problem", lambda: "no card")
    assert working_devices(("cuda:1", "cpu")) == (["cpu"], {"cuda:1": "no card"})


def test_without_any_device_nothing_is_written(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_plan, "gpu_problem", lambda: "no card")
    config = SpeedConfig(images=trained.good, model=trained.model, output=tmp_path / "out", devices=("cuda",))
    with pytest.raises(InspectadError, match="none of the devices works here: cuda: no card"):
        run_speed(config)
    assert not (tmp_path / "out").exists()


# Images


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100])
def test_the_first_of_a_sample_lie_all_over_the_folder(count: int) -> None:
    files = [ImageFile(Path(f"{i}"), f"{i}") for i in range(count)]
    order = [int(f.name) for f in from_all_over(files)]
    assert sorted(order) == list(range(count))
    gaps = np.diff(sorted([-1, *order[: max(count // 4, 1)], count]))
    assert count < 8 or gaps.max() <= count // 2 + 1


def test_a_sample_is_as_large_as_memory_allows_and_leaves_out_what_cannot_be_read(trained, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(trained.good, folder)
    (folder / "a.png").write_bytes(b"no image")
    whole = take_sample(folder, 255)
    assert (len(whole), whole.found, whole.unreadable) == (6, 7, 1)
    assert whole.megapixels == pytest.approx(160 * 192 / 1e6)
    assert whole.file_mb == pytest.approx(statistics.mean(p.stat().st_size for p in trained.good.iterdir()) / 1e6)
    assert len(take_sample(folder, 255, held_bytes=3 * 3 * 160 * 192 * 2)) == 2
    assert len(take_sample(folder, 255, held_bytes=1)) == 1
    with pytest.raises(InspectadError, match="none of its 7 images can be judged"):
        take_sample(folder, 1023)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InspectadError, match="no images in there"):
        take_sample(tmp_path / "empty", 255)


@pytest.mark.parametrize("cannot", [(), ("symlink",), ("symlink", "link")])
def test_many_names_for_few_images(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cannot) -> None:
    for name in cannot:  # as on Windows

        def refuse(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(f"inspectad.benchmark.speed_images.os.{name}", refuse)
    files = find_images(trained.good)
    names = ManyNames(tmp_path / "many", files)
    assert names.first(3) == names.first(8)[:3]
    paths = list(map(Path, names.first(8)))
    assert len(set(paths)) == 8
    assert [p.read_bytes() for p in paths] == [files[i % 6].path.read_bytes() for i in range(8)]
    assert len(find_images(tmp_path / "many")) == 8


def test_a_link_that_is_there_is_never_written_through(trained, tmp_path: Path) -> None:
    files = find_images(trained.good)
    precious = tmp_path / "precious.png"
    precious.write_bytes(b"an image")
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "0000000.png").symlink_to(precious)
    with pytest.raises(OutputError):
        ManyNames(tmp_path / "many", files).first(1)
    assert precious.read_bytes() == b"an image"


# Stages, pipelines, processes


@pytest.fixture(scope="module")
def detector(trained) -> OnnxDetector:
    return OnnxDetector.load(trained.model, "cpu", threads=1)


def test_the_stages_do_what_a_scan_does(trained, detector: OnnxDetector, tmp_path: Path) -> None:
    sample = take_sample(trained.good, 255)
    stages = Stages(sample, detector, tmp_path / "stages")
    assert list(stages.works) == ["read", "decode", "resize", "judge", "heatmap", "encode", "write"]
    scan(ScanConfig(images=(str(trained.good),), output=tmp_path / "scan", heatmaps="all"), detector)
    rows = (tmp_path / "scan" / "results.csv").read_text().splitlines()[1:]
    by_name = {row.split(",")[0]: row.split(",") for row in rows}
    for i, file in enumerate(sample.files):
        assert stages.works["read"](i) == file.path.read_bytes()
        np.testing.assert_array_equal(stages.works["decode"](i), sample.sources[i])
        assert stages.works["resize"](i).shape == (*detector.input_size_hw, 3)
        row = stages.works["judge"](i).decode().rstrip("\n").split(",")
        assert [*row[:9], row[10]] == [*by_name[file.name][:9], by_name[file.name][10]]  # all but elapsed_ms
        picture = (tmp_path / "scan" / "heatmaps" / f"{file.name}.png").read_bytes()
        assert stages.works["encode"](i) == picture
        stages.works["write"](i)
        assert (tmp_path / "stages" / f"{i}.png").read_bytes() == picture
    assert stages.picture_bytes == pytest.approx(
        statistics.mean(p.stat().st_size for p in (tmp_path / "scan" / "heatmaps").iterdir())
    )


def test_a_run_of_the_pipeline_is_a_scan_that_leaves_nothing(
    trained, detector: OnnxDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs: list[ScanConfig] = []
    rows: list[int] = []

    def watched(config: ScanConfig, *arguments: object):
        summary = scan(config, *arguments)
        configs.append(config)
        rows.append(len((config.output / "results.csv").read_text().splitlines()) - 1)
        return summary

    monkeypatch.setattr("inspectad.benchmark.speed_measure.scan", watched)
    names = ManyNames(tmp_path / "names", find_images(trained.good))
    run = _ScanRun(detector, names, tmp_path / "work", 1, "all", 2, 10)
    assert run(0.01).images_per_s > 0
    run(0.01)
    run(1000)
    assert rows == [run.images if i else 2 for i in range(3)] == [2, 10, 10]  # the limit holds
    assert all(config.heatmaps == "all" and len(config.images) == n for config, n in zip(configs, rows, strict=True))
    assert list((tmp_path / "work").iterdir()) == []


def test_cold_start_and_memory_are_of_real_scans(trained, tmp_path: Path) -> None:
    start = cold_start(trained.good / "good_0.png", trained.model, tmp_path / "start", "cpu")
    assert 0 < start.best_s <= start.median_s <= start.median_exit_s
    memory = peak_memory(trained.good, trained.model, tmp_path / "memory", "cpu")
    assert len(list((tmp_path / "memory" / "heatmaps").iterdir())) == 6
    assert memory.device_bytes is None
    assert memory.host_bytes is None or 5e7 < memory.host_bytes < 2e9


def test_memory_does_not_count_that_of_this_process(trained, tmp_path: Path) -> None:
    before = peak_memory(trained.good, trained.model, tmp_path / "m", "cpu").host_bytes
    ballast = np.ones(2**28, np.uint8) if before is not None else np.ones(1)
    after = peak_memory(trained.good, trained.model, tmp_path / "m", "cpu").host_bytes
    assert len(ballast)
    assert before is None or after < before + 2**27


def test_a_scan_that_fails_says_why(trained, tmp_path: Path) -> None:
    with pytest.raises(InspectadError, match="no such file or folder"):
        cold_start(tmp_path / "nothing.png", trained.model, tmp_path / "o", "cpu")
    if speed_models.find_spec("resource") is not None:
        with pytest.raises(InspectadError, match="no such file or folder"):
            peak_memory(tmp_path / "nothing", trained.model, tmp_path / "o", "cpu")


# Models


def test_the_backbone_is_cut_where_patches_begin(trained) -> None:
    graph = (trained.model / "model.onnx").read_bytes()
    model, trunk = onnx.load_from_string(graph), onnx.load_from_string(cut_trunk(graph))
    kinds = [n.op_type for n in trunk.graph.node]
    assert kinds.count("Conv") > 20
    assert "MatMul" not in kinds
    image = np.zeros((2, *OnnxDetector.load(trained.model, "cpu").input_size_hw, 3), np.uint8)
    names = [o.name for o in trunk.graph.output]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    expected = create_session(model.SerializeToString())[0].run(names, {"image": image})
    found = create_session(trunk.SerializeToString())[0].run(names, {"image": image})
    assert names
    for ours, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


def test_models_of_other_sizes_and_precisions_are_whole_models(trained, detector: OnnxDetector, tmp_path: Path) -> None:
    models = speed_models.Models(trained.model, detector.manifest, tmp_path, lambda *_: None)
    own = detector.input_size_hw
    assert models.sizes_hw(()) == models.sizes_hw((max(own),)) == [own]
    (larger,) = models.sizes_hw((128,))
    assert max(larger) == 128
    assert larger[0] / larger[1] == pytest.approx(own[0] / own[1], rel=0.1)
    path = models.file("int8", larger)
    assert models.file("int8", larger) is path
    found = OnnxDetector.load(path, "cpu")
    assert (found.manifest.precision, found.input_size_hw) == ("int8", larger)
    assert extract_manifest(found._session.get_modelmeta().custom_metadata_map, path.read_bytes()) == found.manifest
    same = OnnxDetector.load(models.file("fp32", own), "cpu")
    image = np.full((1, *own, 3), 128, np.uint8)
    scores = [d.predict_resized(image).image_scores for d in (same, detector)]
    np.testing.assert_array_equal(*scores)


def test_a_single_file_is_measured_as_it_is(trained, detector: OnnxDetector, tmp_path: Path) -> None:
    file = trained.model / "model.onnx"
    models = speed_models.Models(file, detector.manifest, tmp_path, lambda *_: None)
    assert models.is_fixed
    assert models.precisions(("fp32", "int8")) == ("fp32",)
    assert models.file("fp32", detector.input_size_hw) == file
    assert models.graph(detector.input_size_hw) is None
    models.check(("fp32",), (max(detector.input_size_hw),))
    for precisions, sizes in ((("int8",), ()), ((), (128,))):
        with pytest.raises(UsageError, match="a single file is measured as it is"):
            models.check(precisions, sizes)


def test_what_a_processor_says_of_itself() -> None:
    lines = ["processor\t: 0", "model name\t: A Fast One", "flags\t\t: fpu avx2 avx512_vnni", "model name\t: Another"]
    assert parse_cpuinfo(lines) == ("A Fast One", ["avx2", "avx512_vnni"])
    assert parse_cpuinfo(["Features\t: fp asimddp"]) == ("", ["asimddp"])
    assert parse_cpuinfo([]) == ("", [])


# The command


@pytest.fixture(scope="module")
def measured(trained, run_cli, tmp_path_factory: pytest.TempPathFactory):
    """A short run by the command line: two precisions, two batch sizes, two input sizes of one of them."""
    folder = tmp_path_factory.mktemp("speed")
    done = run_cli(
        *("benchmark", "speed", trained.good, "-m", trained.model, "-o", folder / "out", "--devices", "cpu,cuda"),
        *("--precisions", "fp32,int8", "--batch-sizes", "1,2", "--seconds", 0.02),
        env={"CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr
    return done, folder / "out", json.loads((folder / "out" / "speed.json").read_text())


def test_everything_that_was_asked_for_is_in_the_json(measured, trained) -> None:
    _, _, report = measured
    assert [(t["device"], t["precision"]) for t in report["targets"]] == [("cpu", "fp32"), ("cpu", "int8")]
    for target in report["targets"]:
        assert list(target["stages"]) == [name for name in ALL if name != "infer"]
        assert [b["batch_size"] for b in target["batches"]] == [1, 2]
        assert [[p["heatmaps"] for p in b["pipelines"]] for b in target["batches"]] == [["off", "all"]] * 2
        assert list(target["latency"]) == ["off", "all"]
        assert target["peak_memory"]["device_bytes"] is None
        for one in target["latency"].values():
            assert 0 < one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
            assert one["runs"] >= 1
    assert report["images"]["used"] == 6
    assert report["images"]["rendered"] is False
    assert {"processor", "cores", "onnxruntime"} <= report["machine"].keys()
    (ratio,) = report["backbone"].values()
    assert ratio["ratio"] == pytest.approx(ratio["graph_ms"] / ratio["backbone_ms"])


def test_the_ratios_in_the_json_follow_from_its_times(measured) -> None:
    _, _, report = measured
    for target in report["targets"]:
        for batch in target["batches"]:
            for pipeline in batch["pipelines"]:
                stages = {n: Timing(**t) for n, t in {**target["stages"], "infer": batch["infer"]}.items()}
                stages = {name: stages[name] for name in stages_of(pipeline["heatmaps"])}
                rate, found = pipeline["timing"]["images_per_s"], pipeline["ratios"]
                bound = 1000 * report["cores"] / sum(t.core_ms for t in stages.values())
                slowest = min(t.images_per_s for t in stages.values())
                assert found["efficiency"] == pytest.approx(rate / slowest)
                assert found["efficiency_limit"] == pytest.approx(bound / slowest)
                assert found["of_bound"] == pytest.approx(rate / bound)


def test_a_device_that_does_not_work_is_named_with_its_reason(measured) -> None:
    done, out, report = measured
    assert list(report["skipped"]) == ["cuda"]
    assert f"cuda: not measured, {report['skipped']['cuda']}" in done.stderr
    assert f"- cuda: not measured, {report['skipped']['cuda']}" in (out / "summary.md").read_text(encoding="utf-8")


def test_the_summary_is_what_goes_to_a_pipe(measured) -> None:
    done, out, _ = measured
    assert done.stdout == (out / "summary.md").read_text(encoding="utf-8")
    tables = [block for block in done.stdout.split("\n\n") if block.startswith("|")]
    assert len(tables) == 6
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_plot_is_a_picture_and_nothing_else_is_left(measured) -> None:
    _, out, _ = measured
    picture = cv2.imread(str(out / "throughput.png"))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    names = {".inspectad-results", "speed.json", "summary.md", "throughput.png"}
    assert {p.name for p in out.iterdir()} == names


@pytest.fixture(scope="module")
def single(trained, tmp_path_factory: pytest.TempPathFactory):
    """A single file, one worker, and no matplotlib."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("inspectad.benchmark.speed.can_plot", lambda: False)
        config = SpeedConfig(
            images=trained.good,
            model=trained.model / "model.onnx",
            output=tmp_path_factory.mktemp("single") / "out",
            devices=("cpu",),
            batch_sizes=(4, 1),
            heatmaps=("off",),
            seconds=0.01,
            workers=1,
        )
        return run_speed(config)


def test_without_matplotlib_there_are_the_tables(single) -> None:
    assert [p.name for p in single.files] == ["speed.json", "summary.md"]
    assert all(p.exists() for p in single.files)
    assert speed_plot.MISSING in single.report.notes


def test_a_single_file_and_one_worker(single) -> None:
    assert single.report.cores == 1
    assert single.report.backbone == {}
    (target,) = single.report.targets
    assert target.precision == "fp32"
    assert [(b.batch_size, b.workers) for b in target.batches] == [(4, 1), (1, 1)]


def test_a_terminal_gets_the_same_tables_with_fewer_columns(single) -> None:
    for table in tables(single.report):
        short = brief(table)
        assert short.headings[0] == "on"
        assert short.rows[0][0] == "cpu fp32 " + table.rows[0][2]
        assert [len(r) for r in short.rows] == [len(short.headings)] * len(table.rows)
        assert set(short.headings) - {"on"} <= set(table.headings)
        assert short.rows[0][1:] == tuple(
            c for h, c in zip(table.headings, table.rows[0], strict=True) if h in short.headings
        )


def test_curves_go_from_small_batches_to_large_ones(single) -> None:
    (target,) = single.report.targets
    found = speed_plot.curves(target)
    large, small = target.batches
    assert found == {
        "infer alone": [(1, small.infer.images_per_s), (4, large.infer.images_per_s)],
        "scan": [(b.batch_size, b.pipelines[0].timing.images_per_s) for b in (small, large)],
    }


def test_drawing_leaves_matplotlib_as_it_was(single) -> None:
    import matplotlib as mpl

    before, had_pyplot = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    assert speed_plot.plot_throughput(single.report).startswith(b"\x89PNG")
    assert mpl.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


def test_a_model_that_a_device_does_not_take_does_not_end_the_others(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inspectad.benchmark.speed.working_devices", lambda _: (["cuda"], {}))
    monkeypatch.setattr("inspectad.detector.gpu_problem", lambda: "no card")
    config = SpeedConfig(images=trained.good, model=trained.model / "model.onnx", output=tmp_path, devices=("cuda",))
    with pytest.raises(InspectadError, match=r"nothing could be measured: cuda fp32 .*: running on cpu: no card"):
        run_speed(config)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--devices", "gpu"], 2, "no device named"),
        (["--precisions", "fp8"], 2, "fp32, fp16, int8"),
        (["--batch-sizes", "0"], 2, "--batch-sizes 0"),
        (["--sizes", "9999"], 2, "--sizes 9999"),
        (["--heatmaps", "ng"], 2, "off, all"),
        (["-m", "nowhere"], 1, "no such model"),
        (["-m", "{model}/model.onnx", "--precisions", "int8"], 2, "measured as it is"),
        ([], 1, "no such model"),  # images without a model: none is trained on something else
    ],
)
def test_what_cannot_be_is_refused(trained, run_cli, tmp_path: Path, arguments, code: int, says: str) -> None:
    given = [argument.format(model=trained.model) for argument in arguments]
    done = run_cli("benchmark", "speed", trained.good, *given, cwd=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_one_command_on_a_bare_machine(run_cli, tmp_path: Path) -> None:
    """No images, no model: both are made, and the working folder gets nothing but the results."""
    done = run_cli(
        *("benchmark", "speed", "--devices", "cpu", "--precisions", "fp32", "--batch-sizes", 1, "--heatmaps", "off"),
        *("--seconds", 0.02),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["inspectad-speed"]
    report = json.loads((tmp_path / "inspectad-speed" / "speed.json").read_text())
    assert report["images"]["rendered"] is True
    assert report["targets"][0]["latency"].keys() == {"off"}


def test_unreadable_images_alone_are_an_error(trained, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    with pytest.raises(InspectadError, match="can be judged") as raised:
        take_sample(tmp_path / "in", 255)
    assert not isinstance(raised.value, UnreadableImageError)  # which would become a row
