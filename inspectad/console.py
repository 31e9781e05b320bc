"""What a person sees: tables and progress on standard error, so that standard output carries nothing but data."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:  # this module is loaded by --help, those are not
    from inspectad.demo import DemoResult
    from inspectad.doctor import Finding
    from inspectad.evaluate import Evaluation
    from inspectad.manifest import Manifest
    from inspectad.ray_engine.scan import RayScanConfig
    from inspectad.records import Inspection
    from inspectad.scan import ScanConfig, ScanSummary
    from inspectad.training import TrainReport

_PIPE_WIDTH = 160  # characters, where there is no terminal to ask


def console(*, stderr: bool) -> Console:
    """A console that does not fold a table at 80 columns when its output goes to a file."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not found.is_terminal:
        found.width = _PIPE_WIDTH
    return found


err = console(stderr=True)
"""For messages, progress and tables. What comes from files or their names goes through `plain`."""

_STYLES = {"OK": "green", "NG": "bold red", "UNREADABLE": "yellow"}
_QUIET_SECONDS = 30.0


def warn(sentences: list[str] | tuple[str, ...], most: int = 20) -> None:
    """Print warnings, one a line, the first ``most`` of them."""
    for sentence in sentences[:most]:
        err.print(f"[yellow]warning:[/] {plain(sentence)}")
    if len(sentences) > most:
        err.print(f"[yellow]warning:[/] and {len(sentences) - most} more like these")


def printable(text: str) -> str:
    """Text without control characters (a file name may hold them) and without lone surrogates."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return visible.encode("utf-8", "backslashreplace").decode()


def plain(text: str) -> str:
    """Text that a terminal only shows: rich's markup and what would move the cursor are no more than letters."""
    return escape(printable(text))


@dataclass(slots=True)
class ScanProgress:
    """A bar with images/s, NG count and time left on a terminal; a quiet line now and then elsewhere."""

    bar: Progress | None
    task: TaskID | None
    started: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)
    images: int = 0
    defects: int = 0

    def total(self, images: int) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, total=images)

    def row(self, row: Inspection) -> None:
        self._count(self.images + 1, self.defects + (row.verdict == "NG"))

    def counted(self, found: int, images: int, defects: int) -> None:
        """So many images were found, were inspected and are NG, as nodes of a cluster say."""
        self.total(found)
        self._count(images, defects)

    def _count(self, images: int, defects: int) -> None:
        self.images, self.defects = images, defects
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=images, rate=f"{self.rate:.1f} images/s", ng=f"{self.defects} NG")
        elif time.monotonic() - self.said > _QUIET_SECONDS:
            self.said = time.monotonic()
            self.say()

    @property
    def rate(self) -> float:
        return self.images / max(time.monotonic() - self.started, 1e-9)

    def say(self) -> None:
        err.print(f"{self.images} images, {self.defects} NG, {self.rate:.1f} images/s")


@contextmanager
def scan_progress() -> Iterator[ScanProgress]:
    """Progress of a scan, shown while the block runs."""
    if not err.is_terminal:
        yield ScanProgress(None, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("scanning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[red]{task.fields[ng]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield ScanProgress(bar, bar.add_task("scanning", total=None, rate="", ng="0 NG"))


@contextmanager
def step_progress() -> Iterator[StepProgress]:
    """Progress of a job in named steps."""
    if not err.is_terminal:
        yield StepProgress(None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        yield StepProgress(bar)


@dataclass(slots=True)
class StepProgress:
    """Says which step runs; the finished ones disappear."""

    bar: Progress | None
    task: TaskID | None = None
    text: str = ""
    said: float = field(default_factory=time.monotonic)
    begun: tuple[float, int] = (0.0, 0)  # when this step was first heard of, and how much of it was done then

    def step(self, text: str, done: int, total: int, detail: str = "", /) -> None:
        if self.bar is None:
            now = time.monotonic()
            if text != self.text:
                err.print(f"{plain(text)} ...")
                self.said, self.begun = now, (now, done)
            elif detail and now - self.said > _QUIET_SECONDS:
                err.print(f"{plain(text)}: {done} of {total}, {plain(detail)}{self._left(now, done, total)}")
                self.said = now
            self.text = text
            return
        if text != self.text:
            if self.task is not None:
                self.bar.remove_task(self.task)
            self.task = self.bar.add_task(plain(text), detail="")
            self.text = text
        if self.task is not None:
            self.bar.update(self.task, total=total if total > 1 else None, completed=done, detail=plain(detail))

    def _left(self, now: float, done: int, total: int) -> str:
        """How long the rest of this step takes, if it goes on as it went, in words."""
        started, before = self.begun
        if done <= before:
            return ""
        seconds = (now - started) / (done - before) * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


def manifest_table(manifest: Manifest, digest: str) -> Table:
    """What ``info`` shows."""
    c, p = manifest.calibration, manifest.parity
    height, width = manifest.input_size_hw
    rows = {
        "model": f"{digest[:12]} (SHA-256 {digest})",
        "made by": manifest.created_by,
        "method": manifest.method,
        "backbone": _backbone(manifest),
        "precision": manifest.precision,
        "input": f"{width} x {height} px, {manifest.resize_rule}, white at {manifest.full_scale}",
        "tiles": f"{manifest.tiling}" if manifest.tiling else "none, images are seen whole",
        "trained on": f"{len(manifest.good_images)} good, {len(manifest.defect_images)} defect images",
        "threshold": f"{c.threshold:.5g} ({c.rule})",
        "map threshold": f"{c.map_threshold:.5g}",
        "false-reject rate": rate_sentence(manifest),
        "held-out scores": f"{c.held_out}, times {c.correction:.4f} for the larger final model",
        "good scores": f"{min(c.good_scores):.4g} to {max(c.good_scores):.4g}" if c.good_scores else "",
        "defect scores": f"{min(c.defect_scores):.4g} to {max(c.defect_scores):.4g}" if c.defect_scores else "none",
        "parity": f"{p.score_difference:.1e} (score), {p.map_difference:.1e} (map) on {p.images} images, "
        f"{p.verdict_changes} verdicts changed, against {p.against}",
        "seed": str(manifest.seed),
        **{f"setting {k}": v for k, v in manifest.settings.items()},
        **{f"version {k}": v for k, v in manifest.versions.items()},
    }
    return _two_columns(rows)


def _backbone(manifest: Manifest) -> str:
    from inspectad.manifest import NO_BACKBONE

    if manifest.backbone == NO_BACKBONE:
        return "none, the network was trained from nothing"
    return f"{manifest.backbone} ({manifest.backbone_sha256[:12] or 'downloaded'})"


def report_training(report: TrainReport) -> None:
    """What ``train`` says when it is done."""
    m, c = report.manifest, report.manifest.calibration
    height, width = m.input_size_hw
    warn(report.warnings)
    rows = {
        "learnt from": f"{len(m.good_images)} good images at {width} x {height} px, scored by {c.held_out}",
        **({"tiles": m.settings["tiles"]} if "tiles" in m.settings else {}),
        "how parts lie": m.settings["pose"],
        "threshold": f"{c.threshold:.4g}, {c.rule}",
        "false-reject rate": rate_sentence(m),
    }
    if c.held_out.startswith("turned"):
        rows["caution"] = "one good image shows nothing of how good parts vary: add a few more before you rely on it"
        if "--pose" in m.settings["pose from"]:
            rows["caution"] += f"; {m.settings['pose from']}"
    else:
        rows["false rejects"] = f"{rate(c.false_rejects, len(c.good_scores))} of good images held out twice"
    if "caution" in m.settings:
        warn([m.settings["caution"]])
    if c.defect_scores:
        if "weight of the defects" in m.settings:
            rows["weight of the defects"] = m.settings["weight of the defects"]
        if m.settings.get("defects on the map", "").startswith("from"):
            rows["defects on the map"] = m.settings["defects on the map"]
        rows["escapes"] = f"{rate(c.escapes, len(c.defect_scores))} of the defects, each scored by a model without it"
        missed = [i.name for i, s in zip(m.defect_images, c.defect_scores, strict=True) if s <= c.threshold]
        if missed:
            more = f" and {len(missed) - 8} more" if len(missed) > 8 else ""
            rows["not found"] = f"{', '.join(missed[:8])}{more}; more good images or a larger --size may help"
        if len(c.good_scores) > 1:
            rows["image AUROC"] = f"{report.image_auroc:.3f}, held-out good against defects"
    rows["wrote"] = f"{report.path} ({report.model_bytes / 1e6:.1f} MB, {report.seconds:.1f} s)"
    err.print(_two_columns(rows))


def rate(events: int, total: int) -> str:
    """A counted rate with its interval."""
    from inspectad.metrics import Rate

    return str(Rate(events, total))


def rate_sentence(manifest: Manifest) -> str:
    """What can be promised, in one sentence."""
    c = manifest.calibration
    if c.supported_rate <= c.false_reject_rate:
        return f"about {c.expected_rate:.2g} of good images like the training ones will be called NG"
    if len(c.good_scores) == 1:
        return f"asked {c.false_reject_rate:.2g}; one good image supports none, the expected rate is unknown"
    supported = "none" if c.supported_rate >= 1 else f"{c.supported_rate:.2g} at best"
    return (
        f"asked {c.false_reject_rate:.2g}; {len(c.good_scores)} good images support {supported}, "
        f"so it is extrapolated: {c.expected_rate:.2g} if log scores are normal"
    )


def _two_columns(rows: dict[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(plain(key), plain(value))
    return table


def evaluation_table(e: Evaluation) -> Table:
    """What ``evaluate`` shows to people."""
    rows = {
        "image AUROC": f"{e.image_auroc:.4f}",
        "AUPR": f"{e.aupr:.4f}",
        "image F1 at the threshold": f"{e.image_f1:.4f} (best threshold for these images: {e.best_f1:.4f})",
        "false rejects": str(e.false_rejects),
        "escapes": str(e.escapes),
        **({f"escapes in {k}": str(v) for k, v in e.per_folder.items()} if len(e.per_folder) > 1 else {}),
    }
    if e.masked:
        rows["pixel AUROC"] = f"{e.pixel_auroc:.4f} ({e.masked} masks)"
        rows["AUPRO (limit 0.3)"] = f"{e.aupro:.4f}"
    return _two_columns(rows)


def findings_table(findings: list[Finding]) -> Table:
    """What ``doctor`` shows."""
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "state", "detail", "what to do"):
        table.add_column(heading, overflow="fold")
    styles = {"ok": "green", "missing": "yellow", "broken": "bold red"}
    for f in findings:
        table.add_row(f.what, f"[{styles[f.state]}]{f.state}[/]", plain(f.detail), plain(f.advice))
    return table


def report_scan(summary: ScanSummary, config: ScanConfig | RayScanConfig) -> None:
    """What ``scan`` says when it is done."""
    counts = summary.verdicts
    if earlier := summary.earlier:
        err.print(f"{earlier.total()} rows were there already: {earlier['NG']} NG, {earlier['UNREADABLE']} UNREADABLE")
    if summary.odd_aspect:
        most = "more than " if len(summary.odd_aspect) >= 1000 else ""
        name = summary.odd_aspect[0]
        text = f"{most}{len(summary.odd_aspect)} images have another aspect ratio than the training images"
        warn([f"{text}, so they were distorted; the first is {name}"])
    speed = summary.images / summary.seconds if summary.seconds else 0.0
    err.print(
        f"{summary.images} images in {summary.seconds:.1f} s ({speed:.1f} images/s): "
        f"[green]{counts['OK']} OK[/], [red]{counts['NG']} NG[/], [yellow]{counts['UNREADABLE']} UNREADABLE[/]"
    )
    places = [config.rows_place]
    places += [f"{config.output}/heatmaps"] if config.heatmaps else []
    places += [f"{config.output}/maps"] if config.maps else []
    err.print(plain(f"wrote {', '.join(places)}"))


def report_demo(result: DemoResult) -> None:
    """What ``demo`` says when it is done."""
    report_training(result.report)
    err.print()
    err.print(rows_table(list(result.rows), result.folders.truth))
    out = result.output
    err.print()
    err.print(plain(f"Look at {out / 'results' / 'heatmaps'} and {out / 'results' / 'results.csv'}."))
    err.print("The same on your own images: inspectad train ./good ./defects; inspectad scan ./line_images --heatmaps")


def rows_table(rows: list[Inspection], truth: dict[str, str | None]) -> Table:
    """What ``demo`` shows: verdict beside truth."""
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "verdict", "score", "severity", "regions", "what it really is"):
        table.add_column(heading)
    for row in rows:
        score = "" if row.score is None else f"{row.score:.3f}"
        severity = "" if row.severity is None else f"{row.severity:.2f}"
        really = truth.get(row.image) or "good"
        verdict = f"[{_STYLES[row.verdict.value]}]{row.verdict}[/]"
        table.add_row(plain(row.image), verdict, score, severity, str(len(row.boxes)), really.replace("_", " "))
    return table


def stdout_is_data() -> bool:
    """Whether rows go to standard output as well: when it is no terminal, something reads it."""
    return sys.stdout is not None and not sys.stdout.isatty()
