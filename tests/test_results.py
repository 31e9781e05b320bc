"""Rows: what is written is what csv and json read back, and no cut of the file yields half a row."""

import csv
import errno
import io
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inspectad.csv_cells import name_of, text_of
from inspectad.errors import OutputError
from inspectad.records import Box, Inspection, Verdict
from inspectad.results import COLUMNS, CSV_HEADER, RowWriter, format_row, read_done, read_names

QUICK = settings(deadline=None, max_examples=80)
DOCUMENTED = "image,verdict,score,threshold,severity,area_px,boxes,peak_x,peak_y,elapsed_ms,model,error"
KINDS = pytest.mark.parametrize("kind", ["csv", "jsonl"])

NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
    st.text('a",\r\n;\t \\é漢', min_size=1, max_size=8),
    st.binary(min_size=1, max_size=8).filter(lambda b: b"\0" not in b).map(os.fsdecode),  # names that are no UTF-8
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)
COUNTS = st.integers(0, 10**6)
BOXES = st.lists(st.builds(Box, COUNTS, COUNTS, COUNTS, COUNTS), max_size=3).map(tuple)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)

JUDGED = st.builds(
    Inspection,
    image=NAMES,
    verdict=st.sampled_from([Verdict.OK, Verdict.NG]),
    score=NUMBERS,
    threshold=NUMBERS,
    severity=NUMBERS,
    area_px=COUNTS,
    boxes=BOXES,
    peak_x=COUNTS,
    peak_y=COUNTS,
    elapsed_ms=st.floats(0, 1e5),
    model=st.just("0123456789ab"),
)
UNREADABLE = st.builds(Inspection, image=NAMES, verdict=st.just(Verdict.UNREADABLE), error=TEXTS, elapsed_ms=NUMBERS)
ROWS = st.one_of(JUDGED, UNREADABLE)
OK = Inspection(image="a.png", verdict=Verdict.OK, score=0.5, threshold=1.0, severity=0.5, model="0123456789ab")


def write(path: Path, kind: str, rows: list[Inspection], keep: int = 0) -> bytes:
    with RowWriter(path, kind, keep) as writer:
        for row in rows:
            writer.write(format_row(row, kind))
    return path.read_bytes()


def read_csv(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")))


def rounded(value: float | None) -> float | None:
    return None if value is None else pytest.approx(value, rel=5.1e-7)  # seven significant digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def test_the_columns_are_the_documented_ones(tmp_path: Path) -> None:
    assert ",".join(COLUMNS) == DOCUMENTED
    assert write(tmp_path / "rows.csv", "csv", []) == DOCUMENTED.encode() + b"\n"
    (record,) = write(tmp_path / "rows.jsonl", "jsonl", [OK]).splitlines()
    assert ",".join(json.loads(record)) == DOCUMENTED


@settings(QUICK, max_examples=150)
@given(st.lists(ROWS, max_size=4))
def test_the_csv_module_reads_back_what_was_written(folder: Path, rows: list[Inspection]) -> None:
    found = read_csv(write(folder / "back.csv", "csv", rows))
    assert len(found) == len(rows)
    for cells, row in zip(found, rows, strict=True):
        assert (name_of(cells["image"]), cells["verdict"], text_of(cells["error"])) == (
            row.image,
            row.verdict.value,
            row.error,
        )
        for name in ("score", "threshold", "severity", "area_px", "peak_x", "peak_y"):
            value = getattr(row, name)
            assert cells[name] == "" if value is None else float(cells[name]) == rounded(value)
        boxes = [tuple(map(int, b.split(" "))) for b in cells["boxes"].split(";") if b]
        assert boxes == [(b.x, b.y, b.width, b.height) for b in row.boxes]


FORMULAS = (
    "=cmd|' /C calc'!A0.png",
    "+1.png",
    "-1.png",
    "@SUM(1).png",
    "\t=1.png",
    " =1.png",
    "＝1.png",
    "\r=1",
    "a;=1.png",
)


SIGNS = ("=", "+", "-", "@", "＝")


@pytest.mark.parametrize("name", FORMULAS)
def test_a_spreadsheet_finds_no_formula_and_the_row_is_found_again(name: str, tmp_path: Path) -> None:
    row = Inspection(image=name, verdict=Verdict.UNREADABLE, model="0123456789ab")
    data = write(tmp_path / "results.csv", "csv", [row, replace(OK, score=-0.5)])
    for separator in (",", ";", "\t"):  # what spreadsheets of several countries take for the separator of cells
        header, first, second = csv.reader(io.StringIO(data.decode(), newline=""), delimiter=separator)
        assert not any(cell.lstrip().startswith(SIGNS) for cell in first)
        assert len(header) == len(first) == len(second)
    unreadable, judged = read_csv(data)
    assert os.path.normpath(unreadable["image"]) == os.path.normpath(name)  # still a path to the same file
    assert judged["score"] == "-0.5"  # a number is one
    assert read_done(tmp_path / "results.csv", "csv").images == {name, "a.png"}


@settings(QUICK, max_examples=300)
@given(st.one_of(NAMES, st.text("=+-@'./ \ta", min_size=1, max_size=6)))
def test_any_name_and_error_is_read_back_from_a_row_that_holds_no_formula(folder: Path, name: str) -> None:
    row = Inspection(image=name, verdict=Verdict.UNREADABLE, error=name, model="0123456789ab")
    (cells,) = read_csv(write(folder / "formula.csv", "csv", [row]))
    assert not any(cells[column].lstrip().startswith(SIGNS) for column in ("image", "error"))
    assert (name_of(cells["image"]), text_of(cells["error"])) == (name, name)
    assert read_done(folder / "formula.csv", "csv").images == {name}


@settings(QUICK, max_examples=150)
@given(st.lists(ROWS, max_size=4))
def test_the_json_module_reads_back_what_was_written(folder: Path, rows: list[Inspection]) -> None:
    lines = write(folder / "back.jsonl", "jsonl", rows).split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        cells = json.loads(line)
        assert (cells["image"], cells["verdict"], cells["error"]) == (row.image, row.verdict.value, row.error)
        for name in ("score", "threshold", "severity", "area_px", "peak_x", "peak_y"):
            assert cells[name] == rounded(getattr(row, name))
        assert cells["boxes"] == [[b.x, b.y, b.width, b.height] for b in row.boxes]


@KINDS
def test_numbers_are_rounded_to_what_they_mean(kind: str, tmp_path: Path) -> None:
    row = replace(OK, score=0.123456789, elapsed_ms=12.3456)
    data = write(tmp_path / "rows", kind, [row])
    assert b"0.1234568," in data
    assert b"12.3" in data
    assert b"12.34" not in data


@KINDS
@QUICK
@given(rows=st.lists(ROWS, min_size=1, max_size=4), data=st.data())
def test_a_file_cut_anywhere_keeps_its_whole_rows_and_can_be_completed(
    folder: Path, kind: str, rows: list[Inspection], data: st.DataObject
) -> None:
    path = folder / f"cut.{kind}"
    whole = write(path, kind, rows)
    ends = [len(write(folder / "prefix", kind, rows[:n])) for n in range(len(rows) + 1)]
    cut = data.draw(st.one_of(st.integers(0, len(whole)), st.sampled_from(ends)))
    path.write_bytes(whole[:cut])
    done = read_done(path, kind)
    kept = sum(end <= cut for end in ends) - 1  # rows; -1 when not even the header is whole
    assert done.whole_bytes == (ends[kept] if kept >= 0 else 0)
    assert done.images == {row.image for row in rows[: max(kept, 0)]}
    assert write(path, kind, rows[max(kept, 0) :], done.whole_bytes) == whole


@KINDS
def test_every_single_cut_of_an_awkward_file_keeps_its_whole_rows(kind: str, tmp_path: Path) -> None:
    names = ['a"\n,b.png', "c\r", 'd\r\n""', os.fsdecode(b"\xff\xc3")]
    rows = [Inspection(image=name, verdict=Verdict.OK, score=0.5, boxes=(Box(1, 2, 3, 4),)) for name in names]
    path = tmp_path / "rows"
    whole = write(path, kind, rows)
    ends = [len(write(tmp_path / "prefix", kind, rows[:n])) for n in range(len(rows) + 1)]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = max(sum(end <= cut for end in ends) - 1, 0)
        assert read_done(path, kind).images == set(names[:kept])


@KINDS
def test_what_resume_compares_is_read_back(kind: str, tmp_path: Path) -> None:
    unreadable = Inspection(image="b.png", verdict=Verdict.UNREADABLE, model="0123456789ab", error="empty")
    write(tmp_path / "rows", kind, [OK, unreadable, replace(OK, image="c.png", threshold=0.1234567)])
    done = read_done(tmp_path / "rows", kind)
    assert done.images == {"a.png", "b.png", "c.png"}
    assert done.models == {"0123456789ab"}
    assert done.thresholds == {"1.0", "0.1234567"}


@KINDS
def test_a_file_that_is_not_there_has_no_rows(kind: str, tmp_path: Path) -> None:
    done = read_done(tmp_path / "rows", kind)
    assert (done.images, done.whole_bytes) == (frozenset(), 0)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("csv", b"name,verdict\na.png,OK\n"),
        ("csv", b"\x89PNG\r\n\x1a\n"),
        ("csv", DOCUMENTED.encode() + b"\na.png,OK\n"),  # too few columns
        ("csv", DOCUMENTED.encode() + b"\n" + b"," * 20 + b"\n"),  # too many
        ("csv", DOCUMENTED.encode() + b"\na\rb.png,OK" + b"," * 10 + b"\n"),
        ("csv", DOCUMENTED.encode() + b"\n" + b"x" * 200_000 + b"," * 11 + b"\n"),  # what the csv module itself refuses
        ("jsonl", b"image,verdict\n"),
        ("jsonl", b'{"image": "a.png"}\n'),
        ("jsonl", b"[1, 2]\n"),
        ("jsonl", b"7\n"),
        ("jsonl", b"\xff\xfe\n"),
        ("jsonl", b"[" * 100_000 + b"\n"),
    ],
)
def test_a_foreign_file_is_refused(kind: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"results.{kind}"
    path.write_bytes(data)
    with pytest.raises(OutputError, match=r"not as this version of inspectad writes it"):
        read_done(path, kind)
    assert path.read_bytes() == data


@KINDS
@QUICK
@given(data=st.binary(max_size=60), ours=st.booleans())
@example(data=b'"\n', ours=True)
def test_any_bytes_are_read_or_refused(folder: Path, kind: str, data: bytes, ours: bool) -> None:
    path = folder / f"any.{kind}"
    path.write_bytes(((DOCUMENTED.encode() + b"\n") if ours and kind == "csv" else b"") + data)
    try:
        done = read_done(path, kind)
    except OutputError:
        return
    assert done.whole_bytes <= path.stat().st_size
    assert len(done.images) <= data.count(b"\n")


class FullDisk:
    """A file that takes five bytes of a record and then reports that the disk is full."""

    def __init__(self, file: io.FileIO, error: BaseException) -> None:
        self.file, self.error, self.calls = file, error, 0

    def write(self, data: memoryview) -> int:
        self.calls += 1
        if self.calls > 1:
            raise self.error
        return self.file.write(data[:5])

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@KINDS
@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.ENOSPC, "No space left on device"), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_row_that_is_written_in_part_is_taken_back(kind: str, error, expected, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    writer = RowWriter(path, kind)
    writer.write(format_row(OK, kind))
    before = path.read_bytes()
    writer._file = FullDisk(writer._file, error)
    with writer, pytest.raises(expected):
        writer.write(format_row(replace(OK, image="b.png"), kind))
    assert path.read_bytes() == before
    assert read_done(path, kind).images == {"a.png"}


def test_a_new_scan_replaces_the_old_rows_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.csv"
    write(path, "csv", [OK, OK, OK])
    assert len(read_csv(write(path, "csv", [OK]))) == 1


def test_a_file_where_the_folder_should_be_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "results").write_bytes(b"")
    with pytest.raises(OutputError, match=r"results\.csv: cannot be written"):
        RowWriter(tmp_path / "results" / "results.csv", "csv")


@given(st.sampled_from(list(Verdict)), st.none() | st.just(0.5))
def test_a_row_has_a_score_exactly_when_it_was_readable(verdict: Verdict, score: float | None) -> None:
    assume((verdict is Verdict.UNREADABLE) != (score is None))
    with pytest.raises(ValueError, match="does not go with"):
        Inspection(image="a.png", verdict=verdict, score=score)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_rows_of_months_are_read_in_little_memory(kind: str, tmp_path: Path) -> None:
    row = format_row(Inspection(image="line/0000000.png", verdict=Verdict.UNREADABLE, error="x" * 1000), kind)
    with (tmp_path / "rows").open("wb") as file:
        file.write(CSV_HEADER if kind == "csv" else b"")
        for i in range(20_000):
            file.write(row.replace(b"0000000", b"%07d" % i))
    tracemalloc.start()
    try:
        done = read_done(tmp_path / "rows", kind)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(done.images) == done.verdicts["UNREADABLE"] == 20_000
    assert done.whole_bytes == (tmp_path / "rows").stat().st_size
    assert most < done.whole_bytes / 5
    assert next(read_names(tmp_path / "rows", kind)) == "line/0000000.png"


@pytest.mark.parametrize("line", [b"x" * 3 * 2**20, b'"' + 99_999 * (b"\n" + b"x" * 99)])
def test_a_record_without_end_is_refused_before_it_fills_the_memory(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(CSV_HEADER + line)
    with pytest.raises(OutputError, match="not as this version"):
        read_done(tmp_path / "rows", "csv")
