"""From rows to tables: means with their spread over seeds, and the comparison with the peer. Pure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

from inspectad.benchmark.plan import PEER
from inspectad.benchmark.rows import Row

MEASURED = (
    "image_auroc",
    "aupr",
    "pixel_auroc",
    "aupro",
    "image_f1",
    "best_f1",
    "false_reject_rate",
    "escape_rate",
    "fit_s",
    "images_per_s",
    "model_mb",
)

Group = tuple[str, str, int]
"""Method, good shots, defect shots: what is averaged is of one group."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one draw on one set; {} when the cell failed. Figures that cannot be had are nan."""

    dataset: str
    group: Group
    seed: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over seeds, sample standard deviation over seeds (nan of one alone), and of how many seeds and sets."""

    mean: float
    sd: float
    seeds: int
    sets: int = 1


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table.

    Attributes:
        dataset: None for the mean over sets.
        sets: sets with at least one figure.
        failed: cells without figures.
    """

    dataset: str | None
    method: str
    good_shots: str
    defect_shots: int
    sets: int
    failed: int
    figures: dict[str, Spread]


@dataclass(frozen=True, slots=True)
class Report:
    """All tables.

    Attributes:
        settings: what was asked for and on what it ran, for people to read.
        lines: by set, then the means over sets.
        comparison: each method beside the peer, over the draws that both managed.
        failures: (cell, error).
    """

    settings: dict[str, str]
    lines: tuple[Line, ...]
    comparison: tuple[Line, ...]
    failures: tuple[tuple[str, str], ...]


def make_report(rows: Sequence[Row], settings: dict[str, str]) -> Report:
    """All tables of these rows; every cell at most once."""
    failures = tuple((str(row.cell), row.error) for row in rows if row.figures is None)
    return Report(settings, tuple(aggregate(map(_sample, rows))), tuple(aggregate(_pairs(rows))), failures)


def _sample(row: Row) -> Sample:
    group = (row.cell.method, row.cell.good_shots, row.cell.defect_shots)
    figures = {} if row.figures is None else {name: float(getattr(row.figures, name)) for name in MEASURED}
    return Sample(row.cell.dataset, group, row.cell.seed, figures)


def _pairs(rows: Sequence[Row]) -> Iterable[Sample]:
    """Our row and the peer's of the same draw, where there are both."""
    samples = [_sample(row) for row in rows if row.figures is not None]
    peers = {(s.dataset, s.group[1:], s.seed): s.figures for s in samples if s.group[0] == PEER}
    for s in samples:
        theirs = peers.get((s.dataset, s.group[1:], s.seed))
        if s.group[0] != PEER and theirs is not None:
            both = {name: s.figures[name] for name in ("image_auroc", "fit_s", "images_per_s")}
            both |= {f"peer_{name}": theirs[name] for name in both}
            both["image_auroc_difference"] = both["image_auroc"] - both["peer_image_auroc"]
            both["speed_ratio"] = both["images_per_s"] / both["peer_images_per_s"]
            yield Sample(s.dataset, s.group, s.seed, both)


def aggregate(samples: Iterable[Sample]) -> list[Line]:
    """A line for each set and group in the order of the samples, then, with several sets, a mean for each group."""
    by_set: dict[tuple[str, Group], list[Sample]] = {}
    by_group: dict[Group, dict[str, list[Sample]]] = {}
    for s in samples:
        by_set.setdefault((s.dataset, s.group), []).append(s)
        by_group.setdefault(s.group, {}).setdefault(s.dataset, []).append(s)
    lines = [_line(dataset, group, {dataset: found}) for (dataset, group), found in by_set.items()]
    if len({dataset for dataset, _ in by_set}) > 1:
        lines += [_line(None, group, sets) for group, sets in by_group.items()]
    return lines


def _line(dataset: str | None, group: Group, sets: Mapping[str, list[Sample]]) -> Line:
    samples = [s for found in sets.values() for s in found]
    names = dict.fromkeys(name for s in samples for name in s.figures)
    figures = {name: _spread(name, sets) for name in names}
    measured = sum(any(s.figures for s in found) for found in sets.values())
    return Line(dataset, *group, measured, sum(not s.figures for s in samples), figures)


def _spread(name: str, sets: Mapping[str, list[Sample]]) -> Spread:
    """Every set weighs the same, however many of its draws failed; the spread is that of the mean over sets, over the
    seeds that all sets have."""
    values = [
        {s.seed: s.figures[name] for s in found if not math.isnan(s.figures.get(name, math.nan))}
        for found in sets.values()
    ]
    values = [v for v in values if v]
    if not values:
        return Spread(math.nan, math.nan, 0, 0)
    common = set.intersection(*(set(v) for v in values))
    means = [fmean(v[seed] for v in values) for seed in sorted(common)]
    mean = fmean(fmean(v.values()) for v in values)
    return Spread(mean, stdev(means) if len(means) > 1 else math.nan, len(means), len(values))


def to_json(report: Report) -> str:
    """The report as JSON; figures that cannot be had are null."""
    return json.dumps(_without_nan(asdict(report)), indent=2) + "\n"


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
