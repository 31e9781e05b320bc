"""What a factory does to a tool: broken files, odd names, full disks, interruptions, foreign models.

Everything runs as a subprocess, as a line controller would run it.
"""

import csv
import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import tifffile
from conftest import PART_HW, RunCli, Trained, cli_environment, command_line, write_png
from onnx import TensorProto, helper
from PIL import Image, ImageOps

from inspectad.atomic import write_together
from inspectad.demo_part import render_part
from inspectad.detector import OnnxDetector
from inspectad.errors import OutputError
from inspectad.manifest import Manifest, manifest_to_json
from inspectad.model_file import append_manifest
from inspectad.results import COLUMNS

PART = render_part(20, None, PART_HW).image
FIGURES = ("score", "threshold", "severity", "area_px", "boxes", "peak_x", "peak_y")


def part(seed: int, defect: str | None = None) -> np.ndarray:
    return render_part(seed, defect, PART_HW).image


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [{**row, "image": row["image"].removeprefix("./")} for row in csv.DictReader(file)]  # -o.png is ./-o.png


def by_name(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    named = {row["image"]: row for row in rows}
    assert len(named) == len(rows), "a row came twice"
    return named


def leftovers(folder: Path) -> list[str]:
    return [f"{here}/{f}" for here, _, files in os.walk(folder) for f in files if f.endswith(".tmp")]


def assert_clear(done: "subprocess.CompletedProcess[str]", exit_code: int, *words: str) -> None:
    """The exit code, every word in the message, and no traceback."""
    assert "Traceback" not in done.stderr
    assert done.returncode == exit_code, done.stderr
    for word in words:
        assert word in done.stderr


# --- one scan over everything that can be wrong with an image ---

NEWLINE, NOT_UTF_8 = "line\nbreak.png", os.fsdecode(b"part_\xff.png")
BROKEN = {  # name to a word of the reason
    "bomb.png": "",
    "dangling.png": "cannot be opened",
    "deep16.png": "16-bit image, but the model was trained on 8-bit ones",
    "fifo.png": "not a file",
    "float.tif": "",
    "text.png": "not an image",
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "zero.png": "empty (0 bytes)",
}
EXACT = (  # a lossless file: its score must be that of the pixels Pillow sees
    "grey.png", "palette.png", "rgba.png", "bits.png", "plain.bmp", "plain.tif", "wide.png", "tiny.png", "large.png",
    "tall.png", "with space.png", "Prüfling Ø5 部品.png", NEWLINE, NOT_UTF_8, "[red]odd.png", "-o.png",
    "a/same.png", "b/same.png", "a/same.jpg.png", "UPPER.PNG",
)  # fmt: skip
LOSSY = ("cmyk.jpg", "upright.jpg", "turned.jpg", "a/same.jpg")
OTHER_ASPECT = ("wide.png", "tiny.png", "tall.png")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    folder: Path
    results: Path
    done: "subprocess.CompletedProcess[str]"
    rows: dict[str, dict[str, str]]


def png_header(width: int, height: int) -> bytes:
    data = bytearray(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=97, subsampling=0, **options)
    return out.getvalue()


def make_broken(folder: Path, picture: Image.Image) -> None:
    (folder / "bomb.png").write_bytes(png_header(200_000, 200_000))
    (folder / "dangling.png").symlink_to(folder / "gone.png")
    write_png(folder / "deep16.png", PART.astype(np.uint16) * 257)
    os.mkfifo(folder / "fifo.png")
    tifffile.imwrite(folder / "float.tif", PART[..., 0].astype(np.float32) / 255)
    (folder / "text.png").write_text("the camera was unplugged\n")
    whole = jpeg(picture)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    whole = cv2.imencode(".png", PART)[1].tobytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")


def make_readable(folder: Path, picture: Image.Image) -> None:
    alpha = np.random.default_rng(1).integers(0, 256, PART_HW).astype(np.uint8)
    Image.fromarray(np.dstack([PART, alpha])).save(folder / "rgba.png")
    for name, mode in {"grey.png": "L", "palette.png": "P", "bits.png": "1"}.items():
        picture.convert(mode).save(folder / name)
    for name in ("plain.bmp", "plain.tif", "with space.png", "Prüfling Ø5 部品.png", NEWLINE, NOT_UTF_8, "-o.png"):
        picture.save(os.fsencode(folder / name), {".bmp": "BMP", ".tif": "TIFF"}.get(Path(name).suffix, "PNG"))
    for name in ("[red]odd.png", "UPPER.PNG"):
        picture.save(folder / name)
    picture.resize((400, 333)).save(folder / "large.png")
    picture.resize((60, 300)).save(folder / "tall.png")
    Image.fromarray(np.full((1, 1, 3), 90, np.uint8)).save(folder / "tiny.png")
    picture.resize((20000, 50)).save(folder / "wide.png")
    (folder / "upright.jpg").write_bytes(jpeg(picture))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    (folder / "turned.jpg").write_bytes(jpeg(picture.transpose(Image.Transpose.ROTATE_90), exif=exif))
    (folder / "cmyk.jpg").write_bytes(jpeg(picture.convert("CMYK")))
    for name, seed in {"a": 21, "b": 22}.items():
        write_png(folder / name / "same.png", part(seed))
    (folder / "a" / "same.jpg").write_bytes(jpeg(Image.fromarray(part(23))))
    write_png(folder / "a" / "same.jpg.png", part(24))
    (folder / "a" / "loop").symlink_to(folder)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, trained: Trained, run_cli: RunCli) -> Line:
    root = tmp_path_factory.mktemp("line")
    folder, picture = root / "images", Image.fromarray(PART)
    folder.mkdir()
    make_broken(folder, picture)
    make_readable(folder, picture)
    (folder / "notes.txt").write_text("no image, and not called one")
    done = run_cli("scan", folder, "-m", trained.model, "-o", root / "results", "--heatmaps", "--device", "cpu")
    return Line(folder, root / "results", done, by_name(read_csv(root / "results" / "results.csv")))


def test_every_image_has_one_row_and_nothing_else_has(line: Line) -> None:
    assert set(line.rows) == {*BROKEN, *EXACT, *LOSSY}


def test_broken_images_do_not_end_the_scan(line: Line) -> None:
    assert_clear(line.done, 4, f"{len(BROKEN)} UNREADABLE")


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_gets_a_reason_and_no_verdict(line: Line, name: str) -> None:
    row = line.rows[name]
    assert row["verdict"] == "UNREADABLE"
    assert BROKEN[name] in row["error"]
    assert len(row["error"]) > 10
    assert [row[column] for column in FIGURES] == [""] * len(FIGURES)
    assert not (line.results / "heatmaps" / f"{name}.png").exists()


def upright(path: Path) -> np.ndarray:
    with Image.open(os.fsencode(path)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.fixture(scope="module")
def detector(trained: Trained) -> OnnxDetector:
    return OnnxDetector.load(trained.model, "cpu")


@pytest.mark.parametrize("name", [n for n in EXACT if n != "rgba.png"])
def test_the_score_is_that_of_the_pixels_pillow_sees(line: Line, detector: OnnxDetector, name: str) -> None:
    expected = float(detector.predict([upright(line.folder / name)]).image_scores[0])
    assert float(line.rows[name]["score"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", LOSSY)
def test_the_score_of_a_jpeg_is_nearly_that_of_pillows_pixels(line: Line, detector: OnnxDetector, name: str) -> None:
    expected = float(detector.predict([upright(line.folder / name)]).image_scores[0])
    assert float(line.rows[name]["score"]) == pytest.approx(expected, rel=0.03)


def test_transparency_changes_no_score(line: Line) -> None:
    assert line.rows["rgba.png"]["score"] == line.rows["with space.png"]["score"]


def test_an_image_turned_by_exif_scores_like_its_upright_twin(line: Line, detector: OnnxDetector) -> None:
    turned, twin = (float(line.rows[n]["score"]) for n in ("turned.jpg", "upright.jpg"))
    assert turned == pytest.approx(twin, rel=0.05)
    lying = np.ascontiguousarray(np.rot90(upright(line.folder / "upright.jpg")))
    assert float(detector.predict([lying]).image_scores[0]) > 1.3 * twin  # so it was really turned


def test_verdicts_follow_from_score_and_threshold(line: Line, detector: OnnxDetector) -> None:
    for name in (*EXACT, *LOSSY):
        row = line.rows[name]
        score, threshold = float(row["score"]), float(row["threshold"])
        assert threshold == pytest.approx(detector.manifest.calibration.threshold, rel=1e-6)
        assert row["verdict"] == ("NG" if score > threshold else "OK")
        assert float(row["severity"]) == pytest.approx(score / threshold, rel=1e-5)
        assert row["error"] == ""


def test_every_readable_image_has_its_own_heatmap_at_source_size(line: Line) -> None:
    folder = line.results / "heatmaps"
    found = {os.path.relpath(os.path.join(h, f), folder) for h, _, files in os.walk(folder) for f in files}
    assert found == {f"{name}.png" for name in (*EXACT, *LOSSY)}
    for name in (*EXACT, *LOSSY):
        assert upright(folder / f"{name}.png").shape == upright(line.folder / name).shape, name


def test_same_names_in_two_folders_keep_their_own_pictures(line: Line) -> None:
    a, b = (upright(line.results / "heatmaps" / n / "same.png.png").astype(int) for n in "ab")
    for overlay, own, other in ((a, 21, 22), (b, 22, 21)):
        assert np.abs(overlay - part(own)).mean() < np.abs(overlay - part(other)).mean()


def test_other_aspects_are_warned_about(line: Line) -> None:
    assert f"{len(OTHER_ASPECT)} images have another aspect ratio" in line.done.stderr
    assert any(name in line.done.stderr for name in OTHER_ASPECT)


def test_names_do_not_break_the_messages(line: Line) -> None:
    assert {c for c in line.done.stderr if not c.isprintable()} == {"\n"}


def test_a_scan_leaves_no_temporary_files(line: Line) -> None:
    assert leftovers(line.results) == []


def test_standard_output_carries_the_rows_and_nothing_else(line: Line) -> None:
    written = (line.results / "results.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert line.done.stdout == written


def test_json_lines_say_the_same_as_the_table(line: Line, trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("scan", line.folder, "-m", trained.model, "-o", tmp_path, "--format", "jsonl", "--device", "cpu")
    assert_clear(done, 4)
    assert done.stdout == (tmp_path / "results.jsonl").read_text()
    lines = done.stdout.splitlines()
    records = [json.loads(text, parse_constant=pytest.fail) for text in lines]
    assert [tuple(r) for r in records] == [COLUMNS] * len(lines)
    assert {r["image"] for r in records} == set(line.rows)
    for record in records:
        row = line.rows[record["image"]]
        assert (record["verdict"], record["error"]) == (row["verdict"], row["error"])
        if record["verdict"] != "UNREADABLE":
            assert record["score"] == pytest.approx(float(row["score"]), rel=1e-4)
            boxes = [list(map(int, b.split())) for b in row["boxes"].split(";")] if row["boxes"] else []
            assert record["boxes"] == boxes
        else:
            assert [record[c] for c in FIGURES if c != "boxes"] == [None] * (len(FIGURES) - 1)
            assert record["boxes"] == []


# --- where to look, where to write, exit codes ---


def test_fail_on_defect_says_3_for_defects_and_0_without(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    common = ("scan", trained.defects, "-m", trained.model, "-o", tmp_path, "--device", "cpu")
    assert_clear(run_cli(*common, "--fail-on-defect", "--threshold", "0.02"), 3, "2 NG")
    assert_clear(run_cli(*common, "--fail-on-defect", "--threshold", "1000"), 0, "2 OK")
    assert_clear(run_cli(*common, "--threshold", "0.02"), 0, "2 NG")


@pytest.mark.parametrize("threshold", ["0", "-1", "nan", "inf"])
def test_thresholds_that_mean_nothing_are_wrong_usage(
    trained: Trained, run_cli: RunCli, tmp_path: Path, threshold: str
) -> None:
    options = ("-m", trained.model, "-o", tmp_path / "out", "--format", "jsonl", "--threshold", threshold)
    assert_clear(run_cli("scan", trained.defects, *options), 2, "--threshold")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_wrong_usage(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("scan", tmp_path / "nowhere", "-m", trained.model, cwd=tmp_path)
    assert_clear(done, 2, str(tmp_path / "nowhere"), "no such file or folder")
    assert done.stdout == ""


def test_a_scan_that_cannot_start_leaves_earlier_results_alone(
    trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    assert_clear(run_cli("scan", trained.defects, "--heatmaps", "-m", trained.model, cwd=tmp_path), 0)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(before) == 4  # rows, two heatmaps, the marker
    assert_clear(run_cli("scan", "nowhere", "-m", trained.model, cwd=tmp_path), 2)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_is_an_error(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_clear(run_cli("scan", "empty", "-m", trained.model, cwd=tmp_path), 1, "empty: no images in there")


def test_an_empty_list_is_an_error(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    assert_clear(run_cli("scan", "-", "-m", trained.model, cwd=tmp_path), 1, "no image was named on standard input")


def test_a_list_with_zero_bytes_may_name_anything(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / NEWLINE
    names = [NEWLINE, NOT_UTF_8, "gone.png", f"sub/../{NEWLINE}x.png"]
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "in" / NEWLINE, tmp_path / "in" / NOT_UTF_8, outside):
        write_png(path, PART)
    listed = b"".join(os.fsencode(n) + b"\0" for n in [*names, str(outside)])
    done = run_cli(
        "scan", "-", "-0", "-m", trained.model, "-o", "../out", "--heatmaps", cwd=tmp_path / "in", stdin=listed
    )
    assert_clear(done, 4, "3 OK" if "3 OK" in done.stderr else "NG", "2 UNREADABLE")
    rows = read_csv(tmp_path / "out" / "results.csv")
    inside = "_outside" + str(outside)
    assert [r["image"] for r in rows] == [NEWLINE, NOT_UTF_8, "gone.png", f"{NEWLINE}x.png", inside]
    assert (tmp_path / "out" / "heatmaps" / f"{inside}.png").exists()
    assert not list((tmp_path / "outside").glob("*.png.png"))


def test_results_inside_the_input_are_never_scanned(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    for seed in (20, 21):
        write_png(tmp_path / f"{seed}.png", part(seed))
    for more in ([], [], ["--resume"]):  # without --resume the old heatmaps are cleared away first
        assert_clear(run_cli("scan", ".", "--heatmaps", *more, "-m", trained.model, cwd=tmp_path), 0)
        assert [r["image"] for r in read_csv(tmp_path / "results" / "results.csv")] == ["20.png", "21.png"]
    assert sorted(p.name for p in (tmp_path / "results" / "heatmaps").iterdir()) == ["20.png.png", "21.png.png"]


def test_a_pattern_that_matches_earlier_heatmaps_does_not_scan_them(
    trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    write_png(tmp_path / "20.png", PART)
    for more in ([], [], ["--resume"]):
        assert_clear(run_cli("scan", "**/*.png", "--heatmaps", *more, "-m", trained.model, cwd=tmp_path), 0)
        assert [r["image"] for r in read_csv(tmp_path / "results" / "results.csv")] == ["20.png"]


def test_writing_into_the_scanned_folder_itself_is_not_called_an_empty_folder(
    trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    write_png(tmp_path / "20.png", PART)
    done = run_cli("scan", ".", "-o", ".", "-m", trained.model, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert "no images in there" not in done.stderr


@pytest.mark.parametrize("name", ["a.png\0b.png", "y" * 5000 + ".png"], ids=["zero-byte", "too-long"])
def test_a_name_that_cannot_exist_gets_a_row_each_time(
    trained: Trained, run_cli: RunCli, tmp_path: Path, name: str
) -> None:
    """What `find -print0` gives to a scan that was not told -0."""
    for _ in range(2):
        done = run_cli("scan", "-", "-m", trained.model, "--heatmaps", cwd=tmp_path, stdin=name + "\n")
        assert_clear(done, 4, "1 UNREADABLE")
        (row,) = read_csv(tmp_path / "results" / "results.csv")
        assert (row["image"], row["verdict"]) == (name, "UNREADABLE")


@pytest.mark.parametrize("closed", [">&-", "<&-"], ids=["output", "input"])
def test_a_scan_without_standard_streams_works(trained: Trained, tmp_path: Path, closed: str) -> None:
    """Services and schedulers start programs so."""
    command = command_line("scan", trained.good, "-m", trained.model, "--device", "cpu")
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}', *command]
    done = subprocess.run(shell, cwd=tmp_path, env=cli_environment(), capture_output=True, text=True, timeout=60)
    assert_clear(done, 0, "6 OK")
    assert len(read_csv(tmp_path / "results" / "results.csv")) == 6


def test_a_list_from_a_closed_standard_input_is_an_error(trained: Trained, tmp_path: Path) -> None:
    command = command_line("scan", "-", "-m", trained.model, "--device", "cpu")
    shell = ["sh", "-c", 'exec "$0" "$@" <&-', *command]
    done = subprocess.run(shell, cwd=tmp_path, env=cli_environment(), capture_output=True, text=True, timeout=60)
    assert_clear(done, 1, "standard input")


def test_a_reader_that_leaves_ends_the_scan_quietly(trained: Trained, tmp_path: Path) -> None:
    """``inspectad scan ... | head -1``"""
    process = subprocess.Popen(
        command_line("scan", trained.good, "-m", trained.model, "--device", "cpu", "--batch-size", "1"),
        cwd=tmp_path, env=cli_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()  # before the first row
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read().decode()
    assert process.wait(timeout=60) == 141
    assert "Traceback" not in said
    assert "Exception" not in said
    assert (tmp_path / "results" / "results.csv").read_bytes().endswith(b"\n")


def file_as_output(root: Path) -> None:
    (root / "results").write_text("a file")


def folder_as_rows(root: Path) -> None:
    (root / "results" / "results.csv").mkdir(parents=True)


def foreign_rows(root: Path) -> None:
    (root / "results").mkdir()
    (root / "results" / "results.csv").write_text("somebody,else\n1,2\n")


def file_as_heatmaps(root: Path) -> None:
    (root / "results").mkdir()
    (root / "results" / "heatmaps").write_text("a file")


@pytest.mark.parametrize("block", [file_as_output, folder_as_rows, foreign_rows, file_as_heatmaps])
def test_an_output_that_cannot_be_written_is_named(
    trained: Trained, run_cli: RunCli, tmp_path: Path, block: Callable[[Path], None]
) -> None:
    block(tmp_path)
    done = run_cli("scan", trained.defects, "-m", trained.model, "--heatmaps", cwd=tmp_path)
    assert_clear(done, 1, "error: results", "-o")
    assert leftovers(tmp_path) == []
    if block is foreign_rows:
        assert (tmp_path / "results" / "results.csv").read_text() == "somebody,else\n1,2\n"


def test_an_output_where_no_folder_can_be_made_is_named(trained: Trained, run_cli: RunCli) -> None:
    done = run_cli("scan", trained.defects, "-m", trained.model, "-o", "/proc/inspectad")
    assert_clear(done, 1, "/proc/inspectad", "cannot be written")


# --- full disk: a real OSError from the system, after so many bytes in a file ---


def limit_files_to(size: int) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"


def test_a_full_disk_leaves_whole_rows(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("scan", trained.good, "-m", trained.model, "-o", "out", cwd=tmp_path, prelude=limit_files_to(300))
    assert_clear(done, 1, "results.csv", "cannot be written", "File too large")
    data = (tmp_path / "out" / "results.csv").read_bytes()
    assert data.endswith(b"\n")
    rows = read_csv(tmp_path / "out" / "results.csv")
    assert 0 < len(rows) < 6
    assert [len(r) for r in csv.reader(io.StringIO(data.decode()))] == [len(COLUMNS)] * (len(rows) + 1)
    assert leftovers(tmp_path) == []
    again = run_cli("scan", trained.good, "-m", trained.model, "-o", "out", "--resume", cwd=tmp_path)
    assert_clear(again, 0, f"{len(rows)} rows were there already", f"{6 - len(rows)} images in")
    assert [r["image"] for r in read_csv(tmp_path / "out" / "results.csv")] == [f"good_{i}.png" for i in range(6)]


def test_a_full_disk_leaves_no_half_heatmap(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    options = ("-m", trained.model, "-o", "out", "--heatmaps")
    done = run_cli("scan", trained.good, *options, cwd=tmp_path, prelude=limit_files_to(20_000))
    assert_clear(done, 1, "heatmaps", "cannot be written", "File too large")
    assert not list((tmp_path / "out").rglob("*.png"))
    assert leftovers(tmp_path) == []
    assert read_csv(tmp_path / "out" / "results.csv") == []


def test_a_full_disk_behind_standard_output_is_an_error(trained: Trained, tmp_path: Path) -> None:
    command = command_line("scan", trained.defects, "-m", trained.model)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, cwd=tmp_path, env=cli_environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert_clear(done, 1, "No space left on device")


def test_files_that_belong_together_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    old = {tmp_path / "a": b"old a", tmp_path / "b": b"old b"}
    write_together(old)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="b: cannot be written"):
            write_together({tmp_path / "a": b"new a", tmp_path / "b": bytes(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == old


# --- interruptions ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of 8 parts, among them one that cannot be read."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(8):
        write_png(folder / f"{i:02}.png", part(30 + i, "scratch" if i % 2 else None))
    for i in range(8, 60):
        os.link(folder / f"{i % 8:02}.png", folder / f"{i:02}.png")
    (folder / "05.png").unlink()
    (folder / "05.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(many: Path, trained: Trained, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "results"
    assert_clear(run_cli("scan", many, "-m", trained.model, "-o", output, "--device", "cpu"), 4)
    return output / "results.csv"


def wait_for_rows(path: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count + 1:
        assert process.poll() is None, "it ended before its rows were there"
        assert time.monotonic() < deadline, "its rows did not come"
        time.sleep(0.01)


@pytest.fixture
def start_scan(trained: Trained) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    started = []

    def start(*arguments: object, cwd: Path, log: Path) -> "subprocess.Popen[bytes]":
        # A shell that starts pytest in the background makes its children ignore Ctrl-C.
        usual = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = command_line("scan", *arguments, "-m", trained.model, "--device", "cpu", prelude=usual)
        pipe = subprocess.PIPE
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                command, cwd=cwd, env=cli_environment(), stdin=pipe, stdout=subprocess.DEVNULL, stderr=stderr
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def assert_same_rows(path: Path, reference: Path) -> None:
    """Equal but for the time taken; scores to rounding, since other images shared the batch."""
    rows, expected = read_csv(path), read_csv(reference)
    assert [r["image"] for r in rows] == [r["image"] for r in expected]
    for row, wanted in zip(rows, expected, strict=True):
        for column in COLUMNS:
            if column in ("score", "severity") and wanted[column]:
                assert float(row[column]) == pytest.approx(float(wanted[column]), rel=1e-5)
            elif column != "elapsed_ms":
                assert row[column] == wanted[column], (row["image"], column)


STOPPING = pytest.mark.parametrize(
    ("number", "exit_code", "words"), [(signal.SIGINT, 130, "stopped by Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)


@STOPPING
def test_a_stopped_stream_keeps_whole_rows_and_can_go_on(
    number: int,
    exit_code: int,
    words: str,
    many: Path,
    uninterrupted: Path,
    trained: Trained,
    run_cli: RunCli,
    start_scan: Callable[..., "subprocess.Popen[bytes]"],
    tmp_path: Path,
) -> None:
    names = [f"{i:02}.png\n" for i in range(60)]
    process = start_scan("-", "-o", tmp_path / "out", cwd=many, log=tmp_path / "stderr")
    assert process.stdin is not None
    process.stdin.write("".join(names[:7]).encode())
    process.stdin.flush()  # and the pipe stays open: the camera may send more
    path = tmp_path / "out" / "results.csv"
    wait_for_rows(path, 7, process)
    process.send_signal(number)
    assert process.wait(timeout=20) == exit_code
    assert_stopped_cleanly(tmp_path, words)
    before = path.read_bytes()
    assert [r["image"] for r in read_csv(path)] == [name.strip() for name in names[:7]]
    options = ("-o", tmp_path / "out", "--resume", "-m", trained.model, "--device", "cpu")
    done = run_cli("scan", "-", *options, cwd=many, stdin="".join(names))
    assert_clear(done, 4, "7 rows were there already", "53 images in")  # the broken one is among the 7
    assert path.read_bytes().startswith(before)
    assert_same_rows(path, uninterrupted)


def assert_stopped_cleanly(folder: Path, words: str) -> None:
    said = (folder / "stderr").read_text()
    assert words in said
    assert "Traceback" not in said
    assert "Fatal" not in said
    assert leftovers(folder) == []


@STOPPING
def test_a_scan_stopped_at_work_keeps_whole_rows_and_can_go_on(
    number: int,
    exit_code: int,
    words: str,
    many: Path,
    uninterrupted: Path,
    trained: Trained,
    run_cli: RunCli,
    start_scan: Callable[..., "subprocess.Popen[bytes]"],
    tmp_path: Path,
) -> None:
    options = ("--heatmaps", "--workers", "1", "--batch-size", "2")
    process = start_scan(many, "-o", tmp_path / "out", *options, cwd=tmp_path, log=tmp_path / "stderr")
    path = tmp_path / "out" / "results.csv"
    wait_for_rows(path, 10, process)
    process.send_signal(number)
    assert process.wait(timeout=20) == exit_code
    assert_stopped_cleanly(tmp_path, words)
    assert path.read_bytes().endswith(b"\n")
    left = len(read_csv(path))
    assert 9 <= left < 60  # a row is taken back when the signal comes between its last byte and its being counted
    done = run_cli(
        "scan", many, "-o", tmp_path / "out", "--resume", "--heatmaps", "-m", trained.model, "--device", "cpu"
    )
    assert f"{left} rows were there already" in done.stderr
    assert f"{60 - left} images in" in done.stderr
    assert_same_rows(path, uninterrupted)
    made = sorted(p.name for p in (tmp_path / "out" / "heatmaps").iterdir())
    assert made == [f"{i:02}.png.png" for i in range(60) if i != 5]


def test_a_torn_last_row_is_written_again(
    many: Path, uninterrupted: Path, trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    """What a power cut leaves."""
    data = uninterrupted.read_bytes()
    lines = data.splitlines(keepends=True)
    (tmp_path / "results.csv").write_bytes(b"".join(lines[:21]) + lines[21][:17])
    done = run_cli("scan", many, "-o", tmp_path, "--resume", "-m", trained.model, "--device", "cpu")
    bad = sum(b",NG," in line for line in lines[1:21])
    # 4: one of the earlier rows is UNREADABLE, and the exit code speaks of the whole results
    assert_clear(done, 4, f"20 rows were there already: {bad} NG, 1 UNREADABLE", "40 images in")
    assert_same_rows(tmp_path / "results.csv", uninterrupted)


def test_rows_of_another_threshold_are_not_gone_on_with(
    many: Path, uninterrupted: Path, trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    shutil.copy(uninterrupted, tmp_path / "results.csv")
    options = ("-o", tmp_path, "--resume", "-m", trained.model, "--threshold", "0.125")
    assert_clear(run_cli("scan", many, *options), 1, "another model or threshold")
    assert (tmp_path / "results.csv").read_bytes() == uninterrupted.read_bytes()


# --- models that are missing, damaged, foreign or hostile ---


@pytest.fixture(scope="module")
def graph_and_manifest(trained: Trained, detector: OnnxDetector) -> tuple[bytes, Manifest]:
    data = (trained.model / "model.onnx").read_bytes()
    entries = {p.key: p.value for p in onnx.load_from_string(data).metadata_props}
    return data[: int(entries["inspectad_graph_bytes"])], detector.manifest


def other_onnx() -> bytes:
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 3]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", made[:1], made[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def damaged(how: str, data: bytes) -> bytes:
    middle = len(data) // 2
    if how == "byte":
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    if how == "tail":
        return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]
    return {"cut": data[:middle], "cut-tail": data[:-20], "empty": b"", "text": b"hello", "other": other_onnx()}[how]


@pytest.mark.parametrize("how", ["byte", "tail", "cut", "cut-tail", "empty", "text", "other"])
def test_a_damaged_or_foreign_model_is_refused(trained: Trained, run_cli: RunCli, tmp_path: Path, how: str) -> None:
    path = tmp_path / "line.onnx"
    path.write_bytes(damaged(how, (trained.model / "model.onnx").read_bytes()))
    done = run_cli("scan", trained.good, "-m", path, "-o", tmp_path / "out")
    assert_clear(done, 1, str(path))
    assert any(word in done.stderr for word in ("damaged", "not an ONNX", "not one that inspectad made"))
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named_with_the_command_that_makes_one(
    trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    assert_clear(run_cli("scan", trained.good, cwd=tmp_path), 1, "no such model", "inspectad train", "-m")
    assert not (tmp_path / "results").exists()


def with_calibration(manifest: Manifest, **changes: object) -> Manifest:
    return dataclasses.replace(manifest, calibration=dataclasses.replace(manifest.calibration, **changes))


HOSTILE: dict[str, tuple[Callable[[Manifest], Manifest], str]] = {
    "newer": (lambda m: dataclasses.replace(m, schema_version=3), "newer inspectad"),
    "huge input": (lambda m: dataclasses.replace(m, input_size_hw=(10**6, 10**6)), "input size"),
    "other input": (lambda m: dataclasses.replace(m, input_size_hw=(2048, 2048)), "not what its manifest says"),
    "no input": (lambda m: dataclasses.replace(m, input_size_hw=(0, -16)), "input size"),
    "nan threshold": (lambda m: with_calibration(m, threshold=float("nan")), "is damaged (manifest.calibration"),
    "huge threshold": (lambda m: with_calibration(m, threshold=10**400), ""),
    "zero threshold": (lambda m: with_calibration(m, threshold=0.0), "not positive"),
    "infinite map threshold": (
        lambda m: with_calibration(m, map_threshold=float("inf")),
        "is damaged (manifest.calibration",
    ),
    "text threshold": (lambda m: with_calibration(m, threshold="1"), "damaged"),
    "white level": (lambda m: dataclasses.replace(m, full_scale=0), "white level"),
    "aspect": (lambda m: dataclasses.replace(m, aspect_range=(float("nan"), float("nan"))), ""),
    "resize rule": (lambda m: dataclasses.replace(m, resize_rule="nearest"), "resize rule"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused(
    name: str, graph_and_manifest: tuple[bytes, Manifest], trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    graph, manifest = graph_and_manifest
    change, words = HOSTILE[name]
    path = tmp_path / "hostile.onnx"
    path.write_bytes(append_manifest(graph, change(manifest)))
    done = run_cli("scan", trained.good, "-m", path, "-o", tmp_path / "out")
    assert_clear(done, 1, str(path), words)
    assert not (tmp_path / "out").exists()


def test_names_in_a_manifest_are_never_used_as_paths_nor_sent_to_the_terminal(
    graph_and_manifest: tuple[bytes, Manifest], trained: Trained, run_cli: RunCli, tmp_path: Path
) -> None:
    graph, manifest = graph_and_manifest
    tricks = ("../../evil.png", "/evil.png", "..\\evil.png", "\x1b]0;evil\x07.png", "[red]evil")
    images = tuple(dataclasses.replace(manifest.good_images[0], name=name) for name in tricks)
    evil = dataclasses.replace(
        manifest, good_images=images, method="\x1b[31m../../evil", settings={"../\x1b[2J[bold]": "\x1b[31m"}
    )
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "evil.onnx"
    path.write_bytes(append_manifest(graph, evil))
    shown = run_cli("info", "-m", path, cwd=tmp_path / "in")
    assert_clear(shown, 0)
    assert "\x1b" not in shown.stdout
    assert "[bold]" in shown.stdout
    as_json = run_cli("info", "-m", path, "--json", cwd=tmp_path / "in")
    assert json.loads(as_json.stdout) == json.loads(manifest_to_json(evil))
    scanned = run_cli("scan", trained.defects, "-m", path, "--heatmaps", cwd=tmp_path / "in")
    assert_clear(scanned, 0)
    assert "\x1b" not in scanned.stderr
    assert {p.name for p in tmp_path.rglob("*") if "evil" in p.name} == {"evil.onnx"}
    assert len(read_csv(tmp_path / "in" / "results" / "results.csv")) == 2


# --- training on what people put into folders ---


def write_tiff(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image)
    return path


def twelve_bits(seed: int, defect: str | None = None) -> np.ndarray:
    """(H, W) grey: a camera's 12 bits, the 4 lower ones noise."""
    grey = part(seed, defect)[..., 1].astype(np.uint16)
    return grey * 16 + np.random.default_rng(seed).integers(0, 16, grey.shape).astype(np.uint16)


@dataclasses.dataclass(frozen=True, slots=True)
class Deep:
    root: Path
    done: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, run_here: RunCli) -> Deep:
    """A model of 12-bit TIFFs, with everything in the folders that should not be there."""
    root = tmp_path_factory.mktemp("deep")
    for seed in range(4):
        write_tiff(root / "good" / f"good_{seed}.tif", twelve_bits(seed))
    write_tiff(root / "good" / "copy_of_2.tif", twelve_bits(2))
    write_tiff(root / "good" / "in_both.tif", twelve_bits(5))
    write_png(root / "good" / "shallow.png", part(6))
    (root / "good" / "broken.tif").write_bytes(b"II*\0 no more")
    write_tiff(root / "defects" / "stain.tif", twelve_bits(7, "stain"))
    write_tiff(root / "defects" / "also_good.tif", twelve_bits(5))
    (root / "defects" / "empty.png").write_bytes(b"")
    done = run_here("train", root / "good", root / "defects", "-o", root / "model", "--size", "64", "--device", "cpu")
    return Deep(root, done)


def test_training_names_what_it_leaves_out(deep: Deep) -> None:
    assert_clear(deep.done, 0)
    warnings = [line for line in deep.done.stderr.splitlines() if line.startswith("warning:")]
    expected = {
        "good/broken.tif": "left out",
        "defects/empty.png": "empty (0 bytes)",
        "good/good_2.tif": "the same picture as copy_of_2.tif",
        "good/in_both.tif": "also among the defects",
        "good/shallow.png": "8-bit where most good images are 16-bit",
    }
    for name, words in expected.items():
        assert [w for w in warnings if str(deep.root / name) in w and words in w], name


def test_training_uses_the_rest(deep: Deep) -> None:
    manifest = OnnxDetector.load(deep.root / "model", "cpu").manifest
    assert {i.name for i in manifest.good_images} == {"good_0.tif", "good_1.tif", "copy_of_2.tif", "good_3.tif"}
    assert {i.name for i in manifest.defect_images} == {"stain.tif"}
    assert manifest.full_scale == 4095
    assert deep.done.stdout == ""


def test_a_model_of_12_bit_images_judges_such_images_only(deep: Deep, run_cli: RunCli, tmp_path: Path) -> None:
    fresh = twelve_bits(40)
    write_tiff(tmp_path / "line" / "fresh.tif", fresh)
    write_png(tmp_path / "line" / "fresh.png", fresh)  # 16-bit PNG, the same pixels
    write_png(tmp_path / "line" / "shallow.png", part(40))
    write_tiff(tmp_path / "line" / "too_bright.tif", np.where(fresh == fresh.max(), 5000, fresh).astype(np.uint16))
    done = run_cli("scan", "line", "-m", deep.root / "model", "--heatmaps", "--device", "cpu", cwd=tmp_path)
    assert_clear(done, 4, "2 UNREADABLE")
    rows = by_name(read_csv(tmp_path / "results" / "results.csv"))
    assert "8-bit image, but" in rows["shallow.png"]["error"]
    assert "up to 5000, but white was 4095" in rows["too_bright.tif"]["error"]
    assert rows["fresh.tif"]["score"] == rows["fresh.png"]["score"]
    eight = np.rint(fresh * (255 / 4095)).astype(np.uint8)
    model = OnnxDetector.load(deep.root / "model", "cpu")
    expected = float(model.predict([np.repeat(eight[..., None], 3, axis=2)]).image_scores[0])
    assert float(rows["fresh.tif"]["score"]) == pytest.approx(expected, rel=1e-4)


def test_one_good_image_is_enough_and_its_weakness_is_said(run_cli: RunCli, tmp_path: Path) -> None:
    write_png(tmp_path / "good" / "only.png", PART)
    done = run_cli("train", "good", "--size", "64", "--device", "cpu", cwd=tmp_path)
    assert_clear(done, 0, "one good image shows nothing of how good parts vary")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "manifest.yaml", "model.onnx", "weights.safetensors",
    ]  # fmt: skip
    assert_clear(run_cli("scan", "good", cwd=tmp_path), 0, "1 OK")


def make_unreadable(root: Path) -> None:
    (root / "good").mkdir()
    (root / "good" / "text.png").write_text("no image")


def make_empty(root: Path) -> None:
    (root / "good").mkdir()


def make_no_defects(root: Path) -> None:
    write_png(root / "good" / "a.png", PART)
    (root / "defects").mkdir()


def make_all_in_both(root: Path) -> None:
    write_png(root / "good" / "a.png", PART)
    write_png(root / "defects" / "b.png", PART)


@pytest.mark.parametrize(
    ("make", "exit_code", "words"),
    [
        (lambda root: None, 2, "good: no such folder"),
        (make_empty, 1, "good: no good images in there"),
        (make_unreadable, 1, "text.png: not an image"),
        (make_no_defects, 1, "defects: no defect images in there"),
        (make_all_in_both, 1, "good: every good image is also among the defects"),
    ],
    ids=["missing", "empty", "unreadable", "no-defects", "all-in-both"],
)
def test_folders_that_allow_no_model(
    run_cli: RunCli, tmp_path: Path, make: Callable[[Path], None], exit_code: int, words: str
) -> None:
    make(tmp_path)
    folders = [n for n in ("good", "defects") if n == "good" or (tmp_path / n).exists()]
    assert_clear(run_cli("train", *folders, cwd=tmp_path), exit_code, words)
    assert not (tmp_path / "model").exists()
    assert leftovers(tmp_path) == []


def test_the_exit_code_of_a_resumed_scan_speaks_of_all_rows(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    scan = ("scan", trained.defects, "-m", trained.model, "-o", tmp_path / "out", "--fail-on-defect")
    first = run_cli(*scan, "--threshold", "0.001")
    assert first.returncode == 3, first.stderr
    assert run_cli(*scan, "--threshold", "0.001", "--resume").returncode == 3


def test_the_results_of_an_earlier_scan_are_no_input(
    trained: Trained, run_cli: RunCli, run_here: RunCli, tmp_path: Path
) -> None:
    shutil.copytree(trained.good, tmp_path / "line")
    scan = ("scan", tmp_path / "line", "-m", trained.model, "--heatmaps", "-o")
    count = len(list(trained.good.iterdir()))
    assert_clear(run_cli(*scan, tmp_path / "line" / "first"), 0, f"{count} images in")
    assert_clear(run_cli(*scan, tmp_path / "second"), 0, f"{count} images in")
    made = run_here("train", tmp_path / "line", "-o", tmp_path / "m", "--size", "64")
    assert_clear(made, 0, f"{count} good images")


def test_evaluation_on_training_images_is_said_to_flatter(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("evaluate", trained.good, trained.defects, "-m", trained.model, "--json")
    total = len(list(trained.good.iterdir())) + len(list(trained.defects.iterdir()))
    assert_clear(done, 0, f"{total} of these images trained the model")
    assert json.loads(done.stdout)["trained_on"] == total


def test_a_photograph_is_no_mask(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("evaluate", trained.good, trained.defects, "-m", trained.model, "--masks", trained.defects)
    assert_clear(done, 2, "more than two values", str(trained.defects))


def test_one_folder_cannot_be_good_and_defective(trained: Trained, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("train", trained.good, trained.good, "-o", tmp_path / "m")
    assert_clear(done, 2, "given both as good and as defects")


def test_defects_kept_below_the_good_folder_are_not_taken_for_good(
    trained: Trained, run_here: RunCli, tmp_path: Path
) -> None:
    shutil.copytree(trained.good, tmp_path / "all")
    shutil.copytree(trained.defects, tmp_path / "all" / "defects")
    done = run_here("train", tmp_path / "all", tmp_path / "all" / "defects", "-o", tmp_path / "m", "--size", "64")
    assert_clear(done, 0, f"{len(list(trained.good.iterdir()))} good images")
    assert "also among the defects" not in done.stderr


def test_results_that_are_ours_but_for_their_end_cost_no_heatmap(trained, run_cli, tmp_path: Path) -> None:
    arguments = ("scan", trained.good, "-m", trained.model, "-o", tmp_path / "out", "--device", "cpu", "--heatmaps")
    assert run_cli(*arguments).returncode == 0
    with (tmp_path / "out" / "results.csv").open("ab") as file:
        file.write(b"a note of somebody\n")
    before = sorted(p for p in (tmp_path / "out").rglob("*"))
    assert_clear(run_cli(*arguments), 1, "not as this version of inspectad writes it")
    assert sorted(p for p in (tmp_path / "out").rglob("*")) == before
