"""``inspectad benchmark soak``: a scan of very many images, and whether it stays as it was after the first thousand."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from inspectad.api import prepare_training, train
from inspectad.atomic import write_atomically, write_together
from inspectad.benchmark.soak_images import Mix, find_usual, render_good, render_odd, render_usual
from inspectad.benchmark.soak_records import Promise, Sample, SoakRun, paces, promises, slope
from inspectad.benchmark.speed_machine import describe_machine
from inspectad.benchmark.tables import markdown_table
from inspectad.detector import OnnxDetector, parse_devices
from inspectad.errors import InspectadError, MissingDependencyError
from inspectad.image_files import RESULTS_MARKER
from inspectad.progress import Step, silent

DEFAULT_MODEL: Final = Path("model")
HEADINGS: Final = ("promise", "found", "limit", "kept")
_SIZE_PX: Final = 64  # of the model that is trained where there is none
_WORK: Final = ".inspectad-soak-"  # hidden, so that nobody takes what is in there for images


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakConfig:
    """What to scan, how often, and where to keep what was found.

    Attributes:
        images: a folder of them; None renders some.
        model: folder or ``.onnx`` file; None for ``model`` if it is there, and if it is not and there are no images
            either, for a small one that is trained on rendered parts.
        count: how many images are scanned.
        odd: one in ten is a damaged file, or of another depth or shape.
        watch: as a hot folder, from which images are deleted when they have their row.
    """

    images: Path | None = None
    model: Path | None = None
    output: Path = Path("inspectad-soak")
    count: int = 100_000
    odd: bool = True
    watch: bool = False
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class SoakResult:
    """What came out."""

    run: SoakRun
    promises: tuple[Promise, ...]
    markdown: str
    notes: tuple[str, ...]
    files: tuple[Path, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """A sentence for each promise that was not kept."""
        return tuple(f"{p.what}: {p.found}; promised: {p.limit}" for p in self.promises if not p.kept)


def run_soak(config: SoakConfig, step: Step = silent) -> SoakResult:
    """Scan, and write ``soak.json``, ``soak.md`` and, where matplotlib is there, ``soak.png``.

    Raises:
        MissingDependencyError: psutil is not installed.
        UsageError: a folder that is not there, or no such device.
        ModelFileError: no model under the name that was given, or a damaged one.
        InspectadError: no image.
    """
    if find_spec("psutil") is None:
        raise MissingDependencyError('a soak needs psutil: pip install "inspectad[benchmark]"')
    from inspectad.benchmark.soak_plot import MISSING, can_plot, plot_soak
    from inspectad.benchmark.soak_process import Folders, soak

    devices = parse_devices(config.device)
    model = config.model or (DEFAULT_MODEL if config.images or DEFAULT_MODEL.exists() else None)
    if model is None:
        prepare_training()
    else:
        OnnxDetector.load(model, "cpu")  # a damaged one is said before anything is written
    usual = find_usual(config.images, config.output) if config.images else ()
    write_atomically(config.output / RESULTS_MARKER, b"")
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=config.output, ignore_cleanup_errors=True) as name:
        work = Path(name).resolve()
        if model is None:
            step("training a small model", 0, 1)
            model = work / "model"
            train(render_good(work / "good"), output=model, pose="fixed", size_px=_SIZE_PX)
        odd = render_odd(work / "odd") if config.odd else ()
        mix = Mix(usual or render_usual(work / "usual"), odd, config.count)
        folders = Folders(work / "images", work / "scan" / "results", work / "tmp")
        command = scan_command(folders.images, model, folders.output, config)
        if devices == ["auto"]:
            devices = [OnnxDetector.load(model).provider.device]
        run = soak(command, mix, folders, step, watch=config.watch)
    kept = promises(run)
    machine = describe_machine(devices)
    markdown = to_markdown(config, run, kept, machine)
    files = {"soak.json": to_json(config, run, kept, machine).encode(), "soak.md": markdown.encode()}
    if can_plot() and run.samples:
        files["soak.png"] = plot_soak(run)
    write_together({config.output / name: data for name, data in files.items()})
    notes = () if can_plot() else (MISSING,)
    return SoakResult(run, kept, markdown, notes, tuple(config.output / name for name in files))


def scan_command(images: Path, model: Path, output: Path, config: SoakConfig) -> list[str]:
    """The command line of the scan, of this very program."""
    options = ["-m", str(model), "-o", str(output), "--device", config.device, "--heatmaps", "all"]
    return [sys.executable, "-m", "inspectad", "scan", str(images), *options, *(["--watch"] if config.watch else [])]


def figures(run: SoakRun) -> dict[str, str]:
    """What is no promise, and yet worth knowing."""
    found = {"verdicts": ", ".join(f"{number} {verdict}" for verdict, number in sorted(run.verdicts.items()))}
    if (growth := slope(run.samples)) is not None:
        found["growth of memory after the first thousand, fitted"] = f"{growth:.0f} bytes an image"
    if (pace := paces(run.samples)) is not None:
        found["images/s, first and last quarter"] = " and ".join(f"{p.images_per_s:.0f}" for p in pace)
    if run.samples:
        found["seconds"] = f"{run.samples[-1].seconds:.0f}"
        found["memory of its own (USS), at most"] = f"{max(s.uss for s in run.samples) / 1e6:.0f} MB"
    found["seconds to its end after the last row"] = f"{run.ending.seconds:.1f}"
    return found


def rows_of(kept: Sequence[Promise]) -> list[tuple[str, ...]]:
    """The promises as a table."""
    return [(p.what, p.found, p.limit, "yes" if p.kept else "NO") for p in kept]


def to_markdown(config: SoakConfig, run: SoakRun, kept: Sequence[Promise], machine: dict[str, str]) -> str:
    """All of a soak but for its samples."""
    how = "watched folder" if config.watch else "scan"
    facts = ", ".join(f"{k} {v}" for k, v in machine.items())
    return (
        f"# Soak\n\n{config.count} images, {how} with heatmaps; {facts}.\n\n"
        f"{markdown_table(HEADINGS, rows_of(kept))}\n\n"
        f"{markdown_table(('figure', 'value'), list(figures(run).items()))}\n"
    )


def to_json(config: SoakConfig, run: SoakRun, kept: Sequence[Promise], machine: dict[str, str]) -> str:
    """All of a soak; samples by column."""
    samples = {name: [getattr(s, name) for s in run.samples] for name in Sample.__slots__}
    report = {
        "images": config.count,
        "watch": config.watch,
        "machine": machine,
        "promises": [asdict(p) for p in kept],
        "figures": figures(run),
        "ending": asdict(run.ending),
        "samples": samples,
    }
    return json.dumps(report, indent=1) + "\n"


def check(result: SoakResult) -> None:
    """Raises: InspectadError when a promise was broken, with a sentence for each."""
    if result.broken:
        raise InspectadError("the soak failed: " + "; ".join(result.broken))
