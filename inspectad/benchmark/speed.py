"""``inspectad benchmark speed``: every stage of a scan and the whole of it, on each device that works here."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from inspectad.api import prepare_training, train
from inspectad.atomic import write_atomically, write_together
from inspectad.benchmark.speed_images import Sample, render_good, render_line, take_sample
from inspectad.benchmark.speed_machine import describe_machine
from inspectad.benchmark.speed_measure import ROUNDS, measure_target, threads_of
from inspectad.benchmark.speed_models import Models
from inspectad.benchmark.speed_plan import (
    DEFAULT_MODEL,
    SpeedConfig,
    batch_sizes_for,
    precisions_for,
    working_devices,
)
from inspectad.benchmark.speed_plot import MISSING, can_plot, plot_throughput
from inspectad.benchmark.speed_ratios import TrunkRatio, cores_used
from inspectad.benchmark.speed_records import Images, SpeedReport, Target, TargetRun
from inspectad.benchmark.speed_report import to_json, to_markdown
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, UsageError
from inspectad.image_files import RESULTS_MARKER, find_images
from inspectad.images import resize
from inspectad.manifest import NO_BACKBONE, Manifest
from inspectad.progress import Step, silent

_BUSY = 0.8  # share of the cores that the stage which uses most of them gets on a machine with nothing else to do
_WORK = ".inspectad-speed-"  # hidden, so that nobody takes what is in there for images


@dataclass(frozen=True, slots=True)
class SpeedResult:
    """What came out."""

    report: SpeedReport
    markdown: str
    files: tuple[Path, ...]


def run_speed(config: SpeedConfig, step: Step = silent) -> SpeedResult:
    """Measure, and write ``speed.json``, ``summary.md`` and, where matplotlib is there, ``throughput.png``.

    Raises:
        UsageError: options that make no sense, or a folder that is not there.
        ModelFileError: no model under the name that was given, or a damaged one.
        InspectadError: no image, or no device of those asked for works here.
    """
    devices, skipped = working_devices(config.devices)
    if not devices:
        raise InspectadError(f"none of the devices works here: {_listed(skipped)}")
    named = _named_model(config)
    # What is wrong with model, options and images is said before anything is written.
    if named is None:
        prepare_training()
    else:
        Models(*named, Path(), step).check(config.precisions, config.sizes)
    if config.images is not None:
        find_images(config.images, config.output)
    write_atomically(config.output / RESULTS_MARKER, b"")
    with tempfile.TemporaryDirectory(prefix=_WORK, dir=config.output, ignore_cleanup_errors=True) as name:
        model, manifest = named or _rendered_model(Path(name), step)
        if manifest.tiling is not None:
            raise UsageError(f"{model}: was trained with --tile; give a model that sees whole images")
        models = Models(model, manifest, Path(name, "models"), step)
        report = _measure(config, devices, skipped, models, Path(name), step)
    markdown = to_markdown(report)
    files = {"speed.json": to_json(report).encode(), "summary.md": markdown.encode("utf-8", "surrogateescape")}
    if can_plot():
        files["throughput.png"] = plot_throughput(report)
    write_together({config.output / name: data for name, data in files.items()})
    return SpeedResult(report, markdown, tuple(config.output / name for name in files))


def _measure(
    config: SpeedConfig, devices: list[str], skipped: dict[str, str], models: Models, work: Path, step: Step
) -> SpeedReport:
    folder = config.images or render_line(work / "line", step)
    exclude = [config.output] if config.images else []
    sample = take_sample(folder, models.manifest.full_scale, *exclude)
    found: list[TargetRun] = []
    heatmap_bytes = 0.0
    for target in _targets(config, devices, models, skipped):
        sizes = config.batch_sizes or batch_sizes_for(target.device)
        try:
            with tempfile.TemporaryDirectory(prefix="run-", dir=work, ignore_cleanup_errors=True) as name:
                measured, heatmap_bytes = measure_target(target, sample, Path(name), config, sizes, step)
        except InspectadError as error:  # this model may be too much for this device, and not for the others
            skipped[str(target)] = str(error)
            continue
        found.append(measured)
    if not found:
        raise InspectadError(f"nothing could be measured: {_listed(skipped)}")
    return SpeedReport(
        machine=describe_machine(devices),
        cores=threads_of(config.workers),
        seconds=config.seconds,
        rounds=ROUNDS,
        images=_images(sample, heatmap_bytes, rendered=config.images is None),
        targets=tuple(found),
        skipped=skipped,
        backbone=_backbone(config, models, sample, step),
        notes=_notes(config, models, sample, found),
    )


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{what}: {why}" for what, why in reasons.items())


def _named_model(config: SpeedConfig) -> tuple[Path, Manifest] | None:
    """The model that was named or lies here; None where there is none, and no images that one would have to fit."""
    if config.model is None and config.images is None and not DEFAULT_MODEL.exists():
        return None
    model = config.model or DEFAULT_MODEL
    return model, OnnxDetector.load(model, "cpu").manifest


def _rendered_model(work: Path, step: Step) -> tuple[Path, Manifest]:
    """A small one of rendered parts."""
    good = render_good(work / "good", step)
    return work / "model", train(good, output=work / "model", pose="fixed", say=step).manifest


def _targets(config: SpeedConfig, devices: list[str], models: Models, skipped: dict[str, str]) -> list[Target]:
    """All models on all devices. What cannot be exported is left out, with its reason."""
    targets = []
    for device in devices:
        for precision in models.precisions(config.precisions or precisions_for(device)):
            for input_hw in models.sizes_hw(config.sizes):
                try:
                    path = models.file(precision, input_hw)
                except InspectadError as error:
                    skipped[f"{precision} {input_hw[1]} x {input_hw[0]}"] = str(error)
                    continue
                targets.append(Target(device, precision, input_hw, path))
    return targets


def _images(sample: Sample, heatmap_bytes: float, *, rendered: bool) -> Images:
    return Images(
        found=sample.found,
        used=len(sample),
        unreadable=sample.unreadable,
        megapixels=sample.megapixels,
        file_mb=sample.file_mb,
        heatmap_mb=heatmap_bytes / 1e6,
        rendered=rendered,
    )


def _backbone(config: SpeedConfig, models: Models, sample: Sample, step: Step) -> dict[str, TrunkRatio]:
    found: dict[str, TrunkRatio] = {}
    if models.manifest.backbone == NO_BACKBONE:
        return found
    for input_hw in models.sizes_hw(config.sizes):
        graph = models.graph(input_hw)
        if graph is not None:
            from inspectad.benchmark.speed_trunk import measure_trunk

            step("the graph against its backbone", len(found), len(config.sizes))
            images = [resize(source, input_hw) for source in sample.sources]
            found[f"{input_hw[1]} x {input_hw[0]}"] = measure_trunk(graph, images, ROUNDS * config.seconds)
    return found


def _notes(config: SpeedConfig, models: Models, sample: Sample, found: list[TargetRun]) -> tuple[str, ...]:
    own, cores = models.manifest.input_size_hw, threads_of(config.workers)
    notes = []
    if models.note:
        notes.append(models.note)
    if any(hw != own for hw in models.sizes_hw(config.sizes)):
        notes.append(
            f"this model learnt at {own[1]} x {own[0]} px; at other sizes only its speed means anything, not its scores"
        )
    if sample.unreadable:
        notes.append(f"{sample.unreadable} images that cannot be judged were left out")
    notes += [
        f"other programs used the machine: no stage of {' '.join(target.name)} got more than {most:.1f} of {cores} "
        "cores, so its bound and limit are too high, 'of bound' too low; of its ratios only 'of turns' can be used"
        for target in found
        if (most := max(map(cores_used, target.stages.values()))) < _BUSY * cores
    ]
    if not can_plot():
        notes.append(MISSING)
    return tuple(notes)
