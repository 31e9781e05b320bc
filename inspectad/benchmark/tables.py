"""The tables of a report as text: cells for a terminal, and Markdown. Pure."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from inspectad.benchmark.report import Line, Report, Spread


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table.

    Attributes:
        digits: after the point.
        scale: 100 for shares that are shown in percent.
        is_brief: also shown on a terminal, where there is less room.
    """

    heading: str
    figure: str
    digits: int = 3
    scale: float = 1.0
    is_brief: bool = True


FIGURES = (
    Column("image AUROC", "image_auroc"),
    Column("AUPR", "aupr", is_brief=False),
    Column("pixel AUROC", "pixel_auroc", is_brief=False),
    Column("AUPRO", "aupro"),
    Column("F1", "image_f1"),
    Column("best F1", "best_f1", is_brief=False),
    Column("false rejects, %", "false_reject_rate", 1, 100),
    Column("escapes, %", "escape_rate", 1, 100),
    Column("fit, s", "fit_s", 1),
    Column("images/s", "images_per_s", 1),
    Column("model, MB", "model_mb", 1, is_brief=False),
)
COMPARISON = (
    Column("image AUROC", "image_auroc"),
    Column("peer's", "peer_image_auroc"),
    Column("difference", "image_auroc_difference"),
    Column("fit, s", "fit_s", 1),
    Column("peer's", "peer_fit_s", 1),
    Column("images/s", "images_per_s", 1),
    Column("peer's", "peer_images_per_s", 1),
    Column("times as fast", "speed_ratio", 2),
)

NOTES = """\
Mean over the seeds, ± standard deviation over the seeds (none for a single one); the means over sets give every set
the same weight ("of 3": only so many have that figure). F1, false rejects and escapes are at the threshold that the
model ships with, best F1 at the best threshold for these very images. AUPRO up to a false-positive rate of 0.3. Fit:
the whole training with calibration, export and proof. Images/s: reading, decoding and inference of the test images,
without heatmaps."""
PEER_NOTES = """\
The same images, input size and backbone weights in the same run, over the draws that both managed. The peer has all
good images in its memory bank, raw scores, and the input scale that the weights expect; it draws no pictures."""


def table(
    lines: Sequence[Line], columns: Sequence[Column], *, brief: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows. ``brief`` leaves out what a terminal has no room for."""
    sets = len({line.dataset for line in lines} - {None})
    shown = [c for c in columns if c.is_brief or not brief]
    rows = [
        [_place(line, sets), line.method, line.good_shots, str(line.defect_shots), _draws(line)]
        + [_cell(line, c) for c in shown]
        for line in lines
    ]
    headings = ["set", "method", "good", "defects", "draws", *(c.heading for c in shown)]
    dull = [i for i, heading in ((1, "method"), (3, "defects")) if len({row[i] for row in rows}) < 2]
    dull = dull if brief else []
    return _without(headings, dull), [_without(row, dull) for row in rows]


def _without(cells: list[str], left_out: Sequence[int]) -> list[str]:
    return [c for i, c in enumerate(cells) if i not in left_out]


def _place(line: Line, sets: int) -> str:
    if line.dataset is not None:
        return line.dataset
    return f"mean of {line.sets} sets" if line.sets == sets else f"mean of {line.sets} of {sets} sets"


def _draws(line: Line) -> str:
    done = max((s.seeds for s in line.figures.values()), default=0)
    return f"{done}, {line.failed} failed" if line.failed else str(done)


def _cell(line: Line, column: Column) -> str:
    spread = line.figures.get(column.figure, Spread(math.nan, math.nan, 0))
    if math.isnan(spread.mean):
        return "–"
    text = f"{spread.mean * column.scale:.{column.digits}f}"
    if not math.isnan(spread.sd):
        text += f" ± {spread.sd * column.scale:.{column.digits}f}"
    return text if line.dataset is not None or spread.sets == line.sets else f"{text} (of {spread.sets})"


def to_markdown(report: Report) -> str:
    """All of a report."""
    parts = ["# Accuracy", ", ".join(f"{k} {v}" for k, v in report.settings.items()) + "."]
    parts += [markdown_table(*table(report.lines, FIGURES)), NOTES]
    if report.comparison:
        parts += ["## Beside the peer", markdown_table(*table(report.comparison, COMPARISON)), PEER_NOTES]
    if report.failures:
        failures = [f"- {_escape(cell)}: {_escape(error)}" for cell, error in report.failures]
        parts += ["## Cells without figures", "\n".join(failures)]
    return "\n\n".join(parts) + "\n"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(text: str) -> str:
    """Names of folders and texts of errors may come from anybody, and Markdown passes HTML on."""
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").splitlines())
