"""The tables of ``benchmark speed`` as text, Markdown and JSON. Pure."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from inspectad.benchmark.speed_records import SpeedReport, TargetRun
from inspectad.benchmark.tables import markdown_table

NOTES = """\
Images/s are medians of {rounds} rounds, in each of which every stage and every pipeline ran once for about
{seconds:g} s; files are in the system's cache. A stage alone has all {cores} cores, as the pipeline has. Core
milliseconds: processor time an image, of all threads together. Bottleneck: what takes most of the machine. Efficiency:
the pipeline's images/s over those of its slowest stage alone on the same cores. Bound: cores / core time of all stages
an image, which is what the cores can do at best; with a GPU the smaller of the network alone and of that bound for the
other stages. Limit: bound over slowest stage alone, as high as efficiency can be: below 100 % where stages share the
cores. Of bound: the pipeline over the bound. Of turns: the pipeline over what the stages, each measured alone on all
cores, would do in turns, 1 / sum of 1 / (images/s); unlike the bound that counts what other programs take. Latency: one
image at a time, from its file to its verdict, with its heatmap where there is one. Cold start: from starting the
program on one image to its row, and to its end."""


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows, under a title."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_TARGET = ("device", "precision", "input")
_PIPELINE = (
    "batch",
    "heatmaps",
    "infer alone",
    "images/s",
    "bottleneck",
    "slowest alone",
    "efficiency",
    "limit",
    "of bound",
    "of turns",
)
_NOT_BRIEF = ("infer alone", "slowest alone")  # told by the other tables as well


def tables(report: SpeedReport) -> list[Table]:
    """All of them, in reading order."""
    targets = report.targets
    found = [
        Table(
            "The whole scan",
            (*_TARGET, *_PIPELINE),
            tuple(row for t in targets for row in _pipelines(t)),
        ),
        Table(
            "Stages alone, images/s (core ms an image)",
            (*_TARGET, *(targets[0].stages if targets else ())),
            tuple((*t.name, *(_stage(s.images_per_s, s.core_ms) for s in t.stages.values())) for t in targets),
        ),
        Table(
            "The network alone, images/s (core ms an image)",
            (*_TARGET, "batch", "threads that call", "images/s"),
            tuple(
                (*t.name, str(b.batch_size), str(b.workers), _stage(b.infer.images_per_s, b.infer.core_ms))
                for t in targets
                for b in t.batches
            ),
        ),
        Table(
            "One image at a time, ms",
            (*_TARGET, "heatmaps", "p50", "p95", "p99", "images"),
            tuple(
                (*t.name, heatmaps, *(_number(v) for v in (one.p50_ms, one.p95_ms, one.p99_ms)), str(one.runs))
                for t in targets
                for heatmaps, one in t.latency.items()
            ),
        ),
        Table(
            "From nothing, and at most",
            (*_TARGET, "cold start, s", "median", "to its end", "host memory, MB", "device memory, MB"),
            tuple(_start(t) for t in targets),
        ),
    ]
    if report.backbone:
        found.append(
            Table(
                "fp32 graph against its backbone alone, one CPU thread",
                ("input", "graph, ms", "backbone, ms", "ratio", "images"),
                tuple(
                    (size, f"{r.graph_ms:.2f}", f"{r.backbone_ms:.2f}", f"{r.ratio:.2f}", str(r.runs))
                    for size, r in report.backbone.items()
                ),
            )
        )
    return found


def brief(table: Table) -> Table:
    """The same for a terminal: device, precision and input in one cell, and without what other tables tell."""
    left_out = {i for i, heading in enumerate(table.headings) if heading in _NOT_BRIEF}

    def shortened(cells: Sequence[str]) -> tuple[str, ...]:
        kept = tuple(cell for i, cell in enumerate(cells) if i not in left_out)
        return kept if table.headings[:3] != _TARGET else (" ".join(kept[:3]), *kept[3:])

    headings = shortened(table.headings)
    headings = ("on", *headings[1:]) if table.headings[:3] == _TARGET else headings
    return Table(table.title, headings, tuple(map(shortened, table.rows)))


def _pipelines(target: TargetRun) -> list[tuple[str, ...]]:
    return [
        (
            *target.name,
            str(batch.batch_size),
            p.heatmaps,
            _number(batch.infer.images_per_s),
            _number(p.timing.images_per_s),
            p.ratios.bottleneck,
            f"{p.ratios.slowest} {_number(p.ratios.slowest_images_per_s)}",
            _percent(p.ratios.efficiency),
            _percent(p.ratios.efficiency_limit),
            _percent(p.ratios.of_bound),
            _percent(p.ratios.of_turns),
        )
        for batch in target.batches
        for p in batch.pipelines
    ]


def _start(target: TargetRun) -> tuple[str, ...]:
    start, memory = target.cold_start, target.peak_memory
    return (
        *target.name,
        *(f"{s:.2f}" for s in (start.best_s, start.median_s, start.median_exit_s)),
        *("–" if m is None else f"{m / 1e6:.0f}" for m in (memory.host_bytes, memory.device_bytes)),
    )


def _stage(images_per_s: float, core_ms: float) -> str:
    return f"{_number(images_per_s)} ({core_ms:.2g})" if core_ms < 10 else f"{_number(images_per_s)} ({core_ms:.0f})"


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 3)}f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def facts(report: SpeedReport) -> str:
    """One paragraph: machine, versions, images."""
    i = report.images
    kind = "rendered images" if i.rendered else "images"
    sample = f"{i.used} of {i.found} {kind} of {i.megapixels:.2f} megapixels and {i.file_mb:.2f} MB"
    drawn = f"heatmaps of {i.heatmap_mb:.2f} MB"
    return ", ".join([*(f"{k} {v}" for k, v in report.machine.items()), sample, drawn]) + "."


def to_markdown(report: SpeedReport) -> str:
    """All of a report."""
    parts = ["# Speed", facts(report)]
    if report.skipped:
        parts.append("\n".join(f"- {what}: not measured, {why}" for what, why in report.skipped.items()))
    for table in tables(report):
        parts += [f"## {table.title}", markdown_table(table.headings, table.rows)]
    parts.append(NOTES.format(rounds=report.rounds, seconds=report.seconds, cores=report.cores))
    parts += [f"{note[:1].upper()}{note[1:]}." for note in report.notes]
    return "\n\n".join(parts) + "\n"


def to_json(report: SpeedReport) -> str:
    """The report as JSON; what is not known is null."""
    return json.dumps(_plain(asdict(report)), indent=2) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
