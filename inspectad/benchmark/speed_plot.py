"""A plot of throughput against batch size. Needs matplotlib, of the extra [benchmark]."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from inspectad.benchmark.speed_records import SpeedReport, TargetRun

MISSING = 'throughput.png was not drawn: it needs matplotlib, pip install "inspectad[benchmark]"'
_STYLES: Final[dict[str, tuple[Literal["--", "-", ":"], str]]] = {
    "infer alone": ("--", "s"),
    "scan": ("-", "o"),
    "scan with heatmaps": (":", "^"),
}
_PIPELINES = {"off": "scan", "all": "scan with heatmaps"}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_throughput(report: SpeedReport) -> bytes:
    """A PNG file: a colour for each device, precision and size; the network alone dashed, scans without and with
    heatmaps whole and dotted. A figure of its own, so that the program's matplotlib stays as it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    used: dict[str, None] = {}
    keys = []
    for number, target in enumerate(report.targets):
        colour = f"C{number % 10}"
        for label, points in curves(target).items():
            style, marker = _STYLES[label]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=style, marker=marker)
            used[label] = None
        keys.append(Line2D([], [], color=colour, linewidth=4, label=", ".join(target.name) + " px"))
    for label in used:
        style, marker = _STYLES[label]
        keys.append(Line2D([], [], color="0.3", linestyle=style, marker=marker, label=label))
    sizes = sorted({batch.batch_size for target in report.targets for batch in target.batches})
    axes.set_xticks(sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size")
    axes.set_ylabel("images/s")
    axes.set_title(f"{report.images.megapixels:.2f} megapixels an image, {report.cores} cores", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def curves(target: TargetRun) -> dict[str, list[tuple[int, float]]]:
    """What is drawn of a target: (batch size, images/s), by what it is."""
    found: dict[str, list[tuple[int, float]]] = {}
    for batch in sorted(target.batches, key=lambda b: b.batch_size):
        found.setdefault("infer alone", []).append((batch.batch_size, batch.infer.images_per_s))
        for pipeline in batch.pipelines:
            found.setdefault(_PIPELINES[pipeline.heatmaps], []).append((batch.batch_size, pipeline.timing.images_per_s))
    return found
