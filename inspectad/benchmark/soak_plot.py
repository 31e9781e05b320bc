"""A plot of a scan's memory over the images. Needs matplotlib, of the extra [benchmark]."""

from __future__ import annotations

import io
import itertools

from inspectad.benchmark.soak_records import MEMORY_BYTES, WARM_UP, SoakRun, rise
from inspectad.benchmark.speed_plot import can_plot

MISSING = 'soak.png was not drawn: it needs matplotlib, pip install "inspectad[benchmark]"'
__all__ = ["MISSING", "can_plot", "plot_soak"]


def plot_soak(run: SoakRun) -> bytes:
    """A PNG file: memory with its limit, open files and threads, temporary disk, and images/s, over the images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    memory, handles, disk, pace = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1, 1, 1))
    x = [s.images for s in run.samples]
    memory.plot(x, [s.rss / 1e6 for s in run.samples], label="resident", linewidth=1)
    memory.plot(x, [s.uss / 1e6 for s in run.samples], label="of its own", linewidth=1)
    if (found := rise(run.samples, "rss")) is not None:
        limit = (found.before + MEMORY_BYTES) / 1e6
        memory.axhline(limit, color="C3", linestyle="--", label=f"limit, {limit:.0f} MB")
    memory.set_ylabel("memory, MB")
    handles.plot(x, [s.handles for s in run.samples], label="open files", linewidth=1)
    handles.plot(x, [s.threads for s in run.samples], label="threads", linewidth=1)
    disk.plot(x, [s.disk / 1e6 for s in run.samples], linewidth=1)
    disk.set_ylabel("disk, MB")
    pace.plot(*_paces(run), linewidth=1)
    pace.set_ylabel("images/s")
    pace.set_xlabel("images")
    for axes in (memory, handles, disk, pace):
        axes.axvline(WARM_UP, color="0.6", linestyle=":")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in (memory, handles):
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _paces(run: SoakRun) -> tuple[list[int], list[float]]:
    """Images/s, each over a fiftieth of the samples."""
    every = max(len(run.samples) // 50, 1)
    points = run.samples[::every]
    pairs = list(itertools.pairwise(points))
    rates = [(b.images - a.images) / max(b.seconds - a.seconds, 1e-9) for a, b in pairs]
    return [b.images for _, b in pairs], rates
