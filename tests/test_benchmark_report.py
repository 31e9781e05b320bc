"""Rows on disk, and the tables made of them, against closed forms in numpy."""

import csv
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad.benchmark.plan import PEER
from inspectad.benchmark.report import MEASURED, Sample, aggregate, make_report, to_json
from inspectad.benchmark.rows import COLUMNS, Cell, Figures, Row, put_row, read_rows, to_csv
from inspectad.benchmark.tables import COMPARISON, FIGURES, table, to_markdown
from inspectad.errors import OutputError

QUICK = settings(deadline=None, max_examples=60)
CELL = Cell(
    dataset="one",
    method="m",
    good_shots="4",
    defect_shots=0,
    seed=0,
    size="auto",
    asked_rate=1 / 3,
    images="0" * 12,
    version="1",
)
COUNTS = {f.name: 7 for f in fields(Figures) if f.type is int}


def figures(**given: float) -> Figures:
    return Figures(**{**COUNTS, **dict.fromkeys(MEASURED, 0.5), **given})


def row(dataset: str = "one", seed: int = 0, method: str = "m", **given: float) -> Row:
    return Row(replace(CELL, dataset=dataset, seed=seed, method=method), figures(**given))


VALUES = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 3)),
    st.floats(-1e3, 1e3) | st.just(math.nan),
    min_size=1,
)


@QUICK
@given(VALUES)
def test_means_and_spreads_equal_numpy(values: dict[tuple[str, int], float]) -> None:
    samples = [Sample(dataset, ("m", "4", 0), seed, {"x": value}) for (dataset, seed), value in values.items()]
    lines = {line.dataset: line.figures["x"] for line in aggregate(samples)}
    sets = list(dict.fromkeys(dataset for dataset, _ in values))
    grid = np.array([[values.get((name, seed), math.nan) for seed in range(4)] for name in sets])
    for name, of_set in zip(sets, grid, strict=True):
        there = of_set[~np.isnan(of_set)]
        assert lines[name].seeds == len(there)
        assert lines[name].mean == pytest.approx(there.mean() if len(there) else math.nan, nan_ok=True)
        assert lines[name].sd == pytest.approx(there.std(ddof=1) if len(there) > 1 else math.nan, nan_ok=True, abs=1e-9)
    assert (None in lines) == (len(sets) > 1)
    if len(sets) > 1:
        grid = grid[~np.isnan(grid).all(axis=1)]
        over_sets = grid.mean(axis=0)[~np.isnan(grid).any(axis=0)] if len(grid) else np.zeros(0)
        mean = np.mean([np.nanmean(of_set) for of_set in grid]) if len(grid) else math.nan
        assert lines[None].mean == pytest.approx(mean, nan_ok=True, abs=1e-9)
        assert (lines[None].seeds, lines[None].sets) == (len(over_sets), len(grid))
        spread = over_sets.std(ddof=1) if len(over_sets) > 1 else math.nan
        assert lines[None].sd == pytest.approx(spread, nan_ok=True, abs=1e-9)


def test_a_failed_cell_counts_as_failed_and_in_no_mean() -> None:
    rows = [row(seed=0, image_auroc=0.9), Row(replace(CELL, seed=1), None, "too few"), row("two", 0, image_auroc=0.7)]
    one, two, mean = make_report(rows, {}).lines
    assert (one.figures["image_auroc"].mean, one.failed, two.failed, mean.failed) == (0.9, 1, 0, 1)
    assert mean.figures["image_auroc"].mean == pytest.approx(0.8)
    assert make_report(rows, {}).failures == (("one, m, 4 good, seed 1", "too few"),)


def test_a_set_without_any_figure_is_missing_from_the_mean_in_words() -> None:
    rows = [row("one"), row("two", pixel_auroc=math.nan), Row(replace(CELL, dataset="three"), None, "gone")]
    headings, cells = table(make_report(rows, {}).lines, FIGURES)
    mean = dict(zip(headings, cells[-1], strict=True))
    assert mean["set"] == "mean of 2 of 3 sets"
    assert mean["pixel AUROC"] == "0.500 (of 1)"
    assert dict(zip(headings, cells[1], strict=True))["pixel AUROC"] == "–"
    assert dict(zip(headings, cells[2], strict=True))["draws"] == "0, 1 failed"


def test_the_comparison_is_over_the_draws_that_both_managed() -> None:
    rows = [
        *(row(seed=s, image_auroc=a, images_per_s=v) for s, a, v in ((0, 0.9, 30), (1, 0.8, 60), (2, 0.1, 1))),
        *(row(seed=s, method=PEER, image_auroc=a, images_per_s=10) for s, a in ((0, 0.85), (1, 0.85))),
        Row(replace(CELL, seed=2, method=PEER), None, "out of memory"),
    ]
    (line,) = make_report(rows, {}).comparison
    differences = np.array([0.05, -0.05])
    assert line.figures["image_auroc_difference"].mean == pytest.approx(differences.mean())
    assert line.figures["image_auroc_difference"].sd == pytest.approx(differences.std(ddof=1))
    assert line.figures["speed_ratio"].mean == pytest.approx(4.5)
    assert line.figures["image_auroc"].mean == pytest.approx(0.85)
    headings, ((*_, fast),) = table([line], COMPARISON)
    assert (headings[-1], fast) == ("times as fast", f"4.50 ± {np.std([3, 6], ddof=1):.2f}")


def test_json_has_all_of_it_and_no_nan() -> None:
    report = make_report([row(pixel_auroc=math.nan), row("two")], {"inspectad": "1"})
    read = json.loads(to_json(report), parse_constant=pytest.fail)
    assert [line["dataset"] for line in read["lines"]] == ["one", "two", None]
    assert read["lines"][0]["figures"]["pixel_auroc"] == {"mean": None, "sd": None, "seeds": 0, "sets": 0}
    assert read["lines"][0]["figures"]["aupr"]["mean"] == 0.5


def test_markdown_tables_are_whole_whatever_the_names() -> None:
    rows = [row("a|b"), row("two"), Row(replace(CELL, dataset="c|d"), None, "x | y")]
    text = to_markdown(make_report(rows, {"inspectad": "1"}))
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "- cd, m, 4 good, seed 0: x  y" in text.replace("\\|", "")
    assert "±" not in "".join(lines)


def test_a_terminal_gets_fewer_columns() -> None:
    report = make_report([row()], {})
    headings, ((*cells,),) = table(report.lines, FIGURES, brief=True)
    assert len(headings) == len(cells) < len(table(report.lines, FIGURES)[0])
    assert "method" not in headings
    two_methods = make_report([row(), row(method="n")], {})
    assert "method" in table(two_methods.lines, FIGURES, brief=True)[0]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
FLOATS = st.floats(0, 1e6).map(lambda v: float(f"{v:.7g}")) | st.just(math.nan)


@QUICK
@given(TEXTS, st.floats(0.001, 0.499), st.lists(FLOATS, min_size=11, max_size=11))
def test_rows_come_back_as_they_went(tmp_path_factory, name: str, rate: float, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    cell = replace(CELL, dataset=name, asked_rate=rate)
    put_row(path, Row(cell, figures(**dict(zip(MEASURED, values, strict=True)))))
    put_row(path, Row(replace(cell, seed=1), None, name))
    found = read_rows(path)
    assert found[replace(cell, seed=1)] == Row(replace(cell, seed=1), None, name)
    back = found[cell].figures
    assert back is not None
    assert [getattr(back, m) for m in MEASURED] == pytest.approx(values, nan_ok=True, rel=0, abs=0)


def test_a_row_replaces_that_of_its_cell_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    put_row(path, Row(CELL, None, "failed"))
    put_row(path, row("two"))
    put_row(path, row(image_auroc=0.25))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["dataset"], r["image_auroc"], r["error"]) for r in rows] == [("two", "0.5", ""), ("one", "0.25", "")]
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", to_csv([row()]).decode().replace("0.5", "half")])
def test_a_foreign_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(OutputError, match="not as this version of inspectad writes it"):
        put_row(path, row())
    assert path.read_text() == text
