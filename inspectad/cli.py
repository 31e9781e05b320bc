"""The command line: one thin function a verb, exit codes, and the only place that catches `InspectadError`.

Exit codes: 0 done; 1 error; 2 wrong usage; 3 defects found, only with ``--fail-on-defect``; 4 some images
unreadable; 130 and 143 stopped by Ctrl-C and SIGTERM. Data goes to stdout or files, everything else to stderr.
Heavy modules are imported inside the verbs, so that ``--help`` is quick and ``scan`` needs no torch.
"""

import contextlib
import errno
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from inspectad import __version__, console
from inspectad.errors import InspectadError, MissingDependencyError, UsageError
from inspectad.image_limits import DEFAULT_MEGAPIXELS, VARIABLE, set_max_megapixels

if TYPE_CHECKING:
    from inspectad.detector import OnnxDetector
    from inspectad.network import Network
    from inspectad.ray_engine.scan import RayScanConfig
    from inspectad.scan import ScanConfig, ScanSummary

app = typer.Typer(
    help="Find defects on a production line from a handful of good images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
benchmark_app = typer.Typer(
    help="Measure methods on labelled sets of images, and speed and endurance on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(benchmark_app, name="benchmark")
P = ParamSpec("P")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What may befall any file that is written, temporary ones too: no bug."""


class Method(StrEnum):
    """Detection methods; `inspectad.methods.METHODS` holds what is behind the names."""

    memory_bank = "memory_bank"
    devnet = "devnet"
    htdg = "htdg"
    anomem = "anomem"
    utad = "utad"


class PoseName(StrEnum):
    """In which ways parts lie; `inspectad.pose` holds what is behind the names."""

    auto = "auto"
    fixed = "fixed"
    mirrored = "mirrored"
    any = "any"


class Transformations(StrEnum):
    """What htdg tells apart; `inspectad.train_config.TRANSFORMATIONS` are the same."""

    rotations = "rotations"
    all = "all"


class Start(StrEnum):
    """What anomem starts from; `inspectad.train_config.STARTS` are the same."""

    pretrained = "pretrained"
    scratch = "scratch"


class Views(StrEnum):
    """Which random views anomem contrasts; `inspectad.train_config.VIEWS` are the same."""

    inspection = "inspection"
    paper = "paper"


class TrainDevice(StrEnum):
    """Where training runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Heatmaps(StrEnum):
    """Of which images heatmaps are written."""

    all = "all"
    ng = "ng"


class RowFormat(StrEnum):
    """Formats of the results."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


class Engine(StrEnum):
    """What runs a long job: this process, or a Ray cluster."""

    local = "local"
    ray = "ray"


class Precision(StrEnum):
    """Precisions of the exported graph."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


ModelOption = Annotated[Path, typer.Option("-m", "--model", help="Model folder, or a single .onnx file.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="auto takes CUDA where it works, else the CPU; cpu, cuda, tensorrt; several GPUs as cuda:0,cuda:1."
    ),
]
MaxMegapixelsOption = Annotated[
    float,
    typer.Option(envvar=VARIABLE, help="Larger images are refused by what their header says, before memory is taken."),
]

StepsOption = Annotated[
    int | None,
    typer.Option(help="Training steps of each of htdg's scales, or of utad's stages; its own choice if absent."),
]
TransformationsOption = Annotated[
    Transformations | None,
    typer.Option(help="What htdg tells apart: quarter turns (if absent), or with all flips, shifts and colour too."),
]
ImagesOrRendered = Annotated[
    Path | None, typer.Argument(help="Folder of images (recursive); without it, parts are rendered.")
]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="ray shares the work among the machines of a Ray cluster.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Of the Ray cluster: auto, or HOST:PORT of its head; without it Ray starts on this machine."),
]


class _Stop:
    """The signal that asked the program to stop, if one did; its exit code is 128 + the signal's number."""

    signum: int | None = None


def _stop(signum: int, _frame: FrameType | None) -> None:
    _Stop.signum = signum
    raise KeyboardInterrupt


def _reporting(verb: Callable[P, None]) -> Callable[P, None]:
    """Turn errors that are meant for the user into a line on stderr and an exit code. Bugs keep their traceback."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except BrokenPipeError:
            _drop_stdout()  # nobody reads it any more
            raise typer.Exit(141) from None
        except (Exception, KeyboardInterrupt) as error:
            if _Stop.signum is not None:  # libraries turn the interruption into errors of their own
                _drop_stdout()  # whoever should read it may be what hangs, and its buffer is written at the end
                name = "Ctrl-C" if _Stop.signum == signal.SIGINT else "SIGTERM"
                console.err.print(f"stopped by {name}; what was written is whole")
                raise typer.Exit(128 + _Stop.signum) from None
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                _drop_stdout()  # it may be what is full
                where = f"{error.filename or 'standard output or a temporary file'}: "
                console.err.print(
                    f"[bold red]error:[/] {console.plain(where)}cannot be written ({error.strerror}); "
                    "free some space, or mend the drive or its permissions"
                )
                raise typer.Exit(1) from error
            if not isinstance(error, InspectadError):
                raise
            console.err.print(f"[bold red]error:[/] {console.plain(str(error))}")
            raise typer.Exit(error.exit_code) from error

    return run


def _drop_stdout() -> None:
    """What is still to be written to standard output goes nowhere."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version(show: bool) -> None:
    if show:
        typer.echo(f"inspectad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find defects on a production line from a handful of good images."""


@app.command()
@_reporting
def train(
    good: Annotated[Path, typer.Argument(help="Folder of good images, at least one.")],
    defects: Annotated[Path | None, typer.Argument(help="Folder of defect images, if there are any.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")] = Path("model"),
    masks: Annotated[
        Path | None, typer.Option(help="Folder of defect masks, named like the defects (or <name>_mask.png).")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Detection method; devnet learns from the defects and needs some, htdg from one good image alone; "
            "anomem learns prototypes of good patches; utad draws each image as it should be."
        ),
    ] = Method.memory_bank,
    size: Annotated[
        int | None, typer.Option(help="Longer side of the network's input in pixels; chosen from the images if absent.")
    ] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PX",
            help="Inspect large images in tiles of so many source pixels; auto: where they are large.",
        ),
    ] = None,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good images that may be called NG.")] = 0.1,
    pose: Annotated[
        PoseName,
        typer.Option(
            help="How good parts may lie: only as photographed (fixed), mirrored, at any angle; auto asks the images."
        ),
    ] = PoseName.auto,
    epochs: Annotated[
        int | None,
        typer.Option(help="How long devnet or anomem train, in epochs of 20 steps; its own choice if absent."),
    ] = None,
    steps: StepsOption = None,
    transformations: TransformationsOption = None,
    init: Annotated[
        Start | None,
        typer.Option(help="What anomem starts from: the pretrained backbone (if absent), or nothing, for a GPU."),
    ] = None,
    views: Annotated[
        Views | None,
        typer.Option(help="Random views that anomem contrasts: careful ones (if absent), or those of the paper."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder for samples.png, to see what was learnt: what htdg makes of noise, utad of training images."
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="Feature network.")] = "efficientnet_lite0",
    backbone_weights: Annotated[
        Path | None, typer.Option(help="Its weights (.safetensors or .pth), if not the embedded ones.")
    ] = None,
    device: Annotated[TrainDevice, typer.Option(help="auto takes the GPU where torch finds one.")] = TrainDevice.auto,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 0,
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
) -> None:
    """Learn what good looks like, calibrate, and write a model.

    inspectad train ./good ./defects
    """
    set_max_megapixels(max_megapixels)
    from inspectad.api import train as run

    with console.step_progress() as progress:
        report = run(
            good,
            defects,
            output,
            masks=masks,
            method=method.value,
            size_px=size,
            tile=tile,
            backbone=backbone,
            backbone_weights=backbone_weights,
            false_reject_rate=false_reject_rate,
            pose=pose.value,
            epochs=epochs,
            steps=steps,
            transformations=transformations.value if transformations else None,
            init=init.value if init else None,
            views=views.value if views else None,
            samples=samples,
            device=device.value,
            seed=seed,
            say=progress.step,
        )
    console.report_training(report)


class _ScanCommand(typer.core.TyperCommand):
    """``--heatmaps`` may stand without a word behind it: then it means ``all``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer has its own click
        filled = list(args)
        if "--heatmaps" in filled:
            at = filled.index("--heatmaps") + 1
            if filled[at : at + 1] and filled[at].lower() in list(Heatmaps):
                filled[at] = filled[at].lower()
            else:
                filled.insert(at, "all")
        return super().parse_args(ctx, filled)


@app.command(cls=_ScanCommand)
@_reporting
def scan(
    images: Annotated[list[str], typer.Argument(help="Folders (recursive), files, patterns, or - for paths on stdin.")],
    model: ModelOption = Path("model"),
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the results; with Ray, or a URL.")] = (
        "results"
    ),
    format_: Annotated[
        RowFormat, typer.Option("--format", help="Format of the rows; parquet with --engine ray.")
    ] = RowFormat.csv,
    heatmaps: Annotated[
        Heatmaps | None,
        typer.Option("--heatmaps", help="Write an overlay for each image (all, also without a word), or for NG ones."),
    ] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Write the raw anomaly maps (32-bit float TIFF).")] = False,
    threshold: Annotated[float | None, typer.Option(help="Replace the calibrated threshold.")] = None,
    tile: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PX",
            help="Cut images into tiles of so many source pixels; auto: as in training, also if absent.",
        ),
    ] = None,
    fail_on_defect: Annotated[bool, typer.Option("--fail-on-defect", help="Exit with 3 when an image is NG.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on with each image that comes into the folder, until Ctrl-C.")
    ] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Paths on stdin end in zero bytes.")] = False,
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int, typer.Option(min=0, max=1024, help="Images a run of the network; 0 chooses: 1 on a CPU.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Images worked on at a time; 0 chooses.")] = 0,
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
    engine: EngineOption = Engine.local,
    address: AddressOption = None,
) -> None:
    """Judge images: a row each in OUTPUT/results.csv, and the same rows on stdout when it is a pipe.

    A new scan replaces the rows and heatmaps of the last one in OUTPUT. With --engine ray the machines of a cluster
    share the images, which may be URLs (s3://...); rows are shards in OUTPUT/rows, in any order, and not on stdout.

    inspectad scan ./line_images --heatmaps
    """
    set_max_megapixels(max_megapixels)
    if threshold is not None and not 0 < threshold < math.inf:
        raise UsageError(
            f"--threshold {threshold}: give a finite score above 0; 'inspectad info' shows the calibrated one"
        )
    _check_engine(engine, address)
    if engine is Engine.ray:
        refused = {"--watch": watch, "--null": null, "--batch-size": batch_size, "--workers": workers}
        _refuse(refused, "on Ray; it finds the images by itself and knows what its nodes have")
        from inspectad.ray_engine.scan import RayScanConfig, scan_on_ray

        shared = RayScanConfig(
            images=tuple(images),
            output=output,
            model=model,
            format=format_.value,
            heatmaps=heatmaps.value if heatmaps else "",
            maps=maps,
            threshold=threshold,
            tile=tile,
            resume=resume,
            device=device,
            address=address,
        )
        with console.scan_progress() as progress:
            summary = scan_on_ray(
                shared, on_progress=progress.counted, on_warning=lambda sentence: console.warn([sentence])
            )
        _end_scan(summary, shared, fail_on_defect)
        return
    _refuse({"--format parquet": format_ is RowFormat.parquet}, "without --engine ray; say csv or jsonl")
    _refuse({f"-o {output}": "://" in output}, "without --engine ray; name a folder of this machine, or add that")
    from inspectad.scan import ScanConfig
    from inspectad.scan import scan as run

    config = ScanConfig(
        images=tuple(images),
        output=Path(output),
        format=format_.value,
        heatmaps=heatmaps.value if heatmaps else "",
        maps=maps,
        threshold=threshold,
        tile=tile,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        null=null,
        watch=watch,
    )
    detector, network = _open(model, device, batch_size, is_stream=watch or images == ["-"])
    stream = sys.stdout.buffer if console.stdout_is_data() else None
    with contextlib.closing(network), console.scan_progress() as progress:
        try:
            summary = run(
                config,
                detector,
                network,
                on_total=progress.total,
                on_row=progress.row,
                on_warning=lambda sentence: console.warn([sentence]),
                stream=stream,
            )
        finally:
            if watch:  # it ends by a signal, without a summary
                progress.say()
    _end_scan(summary, config, fail_on_defect)


def _check_engine(engine: Engine, address: str | None) -> None:
    if address is not None and engine is not Engine.ray:
        raise UsageError("--address is of a Ray cluster; add --engine ray")


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises: UsageError: one of the options was given."""
    if given := [name for name, value in options.items() if value]:
        raise UsageError(f"{', '.join(given)}: not {why}")


def _end_scan(summary: "ScanSummary", config: "ScanConfig | RayScanConfig", fail_on_defect: bool) -> None:
    console.report_scan(summary, config)
    if fail_on_defect and summary.all_verdicts["NG"]:
        raise typer.Exit(3)
    if summary.all_verdicts["UNREADABLE"]:
        raise typer.Exit(4)


def _open(
    model: Path, devices: str, batch_size: int = 0, *, is_stream: bool = False
) -> tuple["OnnxDetector", "Network"]:
    """The model, with one line when it does not run where one might think."""
    try:
        from inspectad.network import open_network
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"onnxruntime does not load ({error}); 'inspectad doctor' says more") from error

    detector, network = open_network(model, devices, batch_size, is_stream=is_stream)
    if detector.provider.reason:
        console.err.print(console.plain(detector.provider.reason))
    return detector, network


@app.command()
@_reporting
def export(
    model: Annotated[Path, typer.Option("-m", "--model", help="Model folder.")] = Path("model"),
    output: Annotated[Path, typer.Option("-o", "--output", help="The ONNX file to write.")] = Path("model.onnx"),
    precision: Annotated[Precision, typer.Option(help="fp16 is for GPUs, int8 for CPUs with VNNI.")] = Precision.fp32,
) -> None:
    """Write the trained network as one ONNX file, proved against the network on real images.

    inspectad export --precision int8 -o line3.onnx
    """
    from inspectad.api import prepare_training

    prepare_training()
    from inspectad.export import ExportConfig, describe_parity
    from inspectad.export import export as run

    console.err.print("exporting and comparing ...")
    manifest, size = run(ExportConfig(model=model, output=output, precision=precision.value))
    console.err.print(console.plain(f"{describe_parity(manifest.parity)}: wrote {output} ({size / 1e6:.1f} MB)"))


@app.command()
@_reporting
def explain(
    images: Annotated[list[str], typer.Argument(help="Folders (recursive), files, or patterns.")],
    model: Annotated[
        Path, typer.Option("-m", "--model", help="Model folder of a method that explains itself: devnet, utad.")
    ] = Path("model"),
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")] = Path("explain"),
    device: Annotated[TrainDevice, typer.Option(help="auto takes the GPU where torch finds one.")] = TrainDevice.auto,
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
) -> None:
    """Draw why a model scores images as it does, a picture for each image.

    devnet: the gradient of the image score with respect to each pixel, from blue to red on a scale of its own for each
    image. So it says what a score rests on, not how high it is; scan --heatmaps has one scale for all images.

    utad: input, impression, reconstruction and anomaly map side by side; the map's colours are those of the heatmaps.

    inspectad explain ./line_images
    """
    set_max_megapixels(max_megapixels)
    from inspectad.api import prepare_training

    prepare_training()
    from inspectad.explain import ExplainConfig
    from inspectad.explain import explain as run

    with console.step_progress() as progress:
        summary = run(
            ExplainConfig(images=tuple(images), model=model, output=output, device=device.value), progress.step
        )
    console.warn([f"{name}: not explained, {reason}" for name, reason in summary.unreadable])
    console.err.print(console.plain(f"{summary.pictures} images in {summary.seconds:.1f} s: wrote {output}"))
    if summary.unreadable:
        raise typer.Exit(4)


@app.command()
@_reporting
def evaluate(
    good: Annotated[Path, typer.Argument(help="Folder of good images that the model has not seen.")],
    defects: Annotated[Path, typer.Argument(help="Folder of defect images that the model has not seen.")],
    model: ModelOption = Path("model"),
    masks: Annotated[Path | None, typer.Option(help="Folder of defect masks, for pixel figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    device: DeviceOption = "auto",
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
) -> None:
    """Measure a model on labelled images.

    inspectad evaluate ./test/good ./test/defects --masks ./masks
    """
    set_max_megapixels(max_megapixels)
    from inspectad.evaluate import EvaluateConfig
    from inspectad.evaluate import evaluate as run

    detector, network = _open(model, device)
    network.close()  # of several devices, the first evaluates
    with console.step_progress() as progress:
        result = run(EvaluateConfig(good=good, defects=defects, masks=masks), detector, progress.step)
    console.warn([f"{path}: left out, {reason}" for path, reason in result.unreadable])
    if result.trained_on:
        console.warn([f"{result.trained_on} of these images trained the model, so the figures flatter it; take others"])
    if json:
        typer.echo(result.to_json())
    else:
        console.console(stderr=False).print(console.evaluation_table(result))
    if result.unreadable:
        raise typer.Exit(4)


@benchmark_app.command()
@_reporting
def accuracy(
    datasets: Annotated[list[Path], typer.Argument(help="Folders in MVTec layout, or with good and defects in them.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for rows.csv, summary.md and summary.json.")
    ] = Path("inspectad-benchmark"),
    shots: Annotated[str, typer.Option(help="Numbers of good images to train on, or all: 1,4,16,all.")] = "1,4,16",
    defect_shots: Annotated[str, typer.Option(help="Numbers of defects to train on: 0,1,5,10.")] = "0",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the images for each number of them.")] = 3,
    methods: Annotated[str, typer.Option(help="Detection methods, with commas between.")] = Method.memory_bank.value,
    size: Annotated[
        int | None, typer.Option(help="Longer side of the network's input in pixels; chosen from the images if absent.")
    ] = None,
    steps: StepsOption = None,
    transformations: TransformationsOption = None,
    false_reject_rate: Annotated[float, typer.Option(help="Share of good images that may be called NG.")] = 0.1,
    peer: Annotated[
        Path | None, typer.Option(help="A Python that has anomalib, to compare with its PatchCore on the same images.")
    ] = None,
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
    engine: EngineOption = Engine.local,
    address: AddressOption = None,
) -> None:
    """Train and measure over sets, numbers of images, draws and methods; the same command goes on after a stop.

    With --engine ray each cell is a task of a Ray cluster, whose nodes must see the datasets under the same paths.

    inspectad benchmark accuracy ./bottle ./pill --shots 1,4,16,all
    """
    set_max_megapixels(max_megapixels)
    _check_engine(engine, address)
    from inspectad.api import prepare_training

    prepare_training()
    from inspectad.benchmark.accuracy import run_accuracy, run_here
    from inspectad.benchmark.plan import AccuracyConfig, parse_defect_shots, parse_methods, parse_shots
    from inspectad.benchmark.show import cell_progress, report_accuracy

    config = AccuracyConfig(
        datasets=tuple(datasets),
        output=output,
        shots=parse_shots(shots),
        defect_shots=parse_defect_shots(defect_shots),
        seeds=seeds,
        methods=parse_methods(methods, list(Method)),
        size_px=size,
        steps=steps,
        transformations=transformations.value if transformations else None,
        false_reject_rate=false_reject_rate,
        peer=peer,
    )
    run_cells = run_here
    with cell_progress() as progress, contextlib.ExitStack() as stack:
        if engine is Engine.ray:
            _refuse({"--peer": peer}, "on Ray: its Python is on this machine; run that comparison without --engine ray")
            from inspectad.ray_engine.cells import run_cells_on_ray
            from inspectad.ray_engine.session import session

            stack.enter_context(session(address))
            run_cells = run_cells_on_ray
        result = run_accuracy(config, progress, lambda: _Stop.signum is not None, run_cells)
    report_accuracy(result)
    if result.report.failures:
        raise typer.Exit(1)
    if any(row.figures and row.figures.unreadable for row in result.rows):
        raise typer.Exit(4)


@benchmark_app.command()
@_reporting
def speed(
    images: ImagesOrRendered = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="Model folder, or a single .onnx file, which is measured as it is; else ./model or, without it and "
            "without IMAGES, one trained on rendered parts.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for speed.json, summary.md and throughput.png.")
    ] = Path("inspectad-speed"),
    devices: Annotated[
        str, typer.Option(help="auto takes all that work here; or names, as cpu,cuda,tensorrt.")
    ] = "auto",
    precisions: Annotated[
        str | None, typer.Option(help="fp32, fp16, int8 with commas between; else fp32,int8 on CPU, fp32,fp16 on GPU.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Images a run of the network; else 1,4,16, on a GPU 64 too.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Longer sides of the network's input in pixels; else the model's own.")
    ] = None,
    heatmaps: Annotated[str, typer.Option(help="Scans without heatmaps (off), with one for each image (all).")] = (
        "off,all"
    ),
    seconds: Annotated[
        float, typer.Option(min=0.01, max=3600, help="How long each measurement lasts in each of 3 rounds.")
    ] = 2.0,
    workers: Annotated[int, typer.Option(min=0, max=256, help="Images worked on at a time; 0 chooses.")] = 0,
    max_megapixels: MaxMegapixelsOption = DEFAULT_MEGAPIXELS,
) -> None:
    """Measure each stage of a scan and the whole of it, by device, precision, batch size and input size.

    inspectad benchmark speed ./line_images
    """
    set_max_megapixels(max_megapixels)
    try:
        from inspectad.benchmark.speed import run_speed
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"onnxruntime does not load ({error}); 'inspectad doctor' says more") from error
    from inspectad.benchmark import speed_plan
    from inspectad.benchmark.show import report_speed

    config = speed_plan.SpeedConfig(
        images=images,
        model=model,
        output=output,
        devices=speed_plan.parse_device_list(devices),
        precisions=speed_plan.parse_names(precisions, speed_plan.PRECISIONS, "--precisions"),
        batch_sizes=speed_plan.parse_batch_sizes(batch_sizes),
        sizes=speed_plan.parse_sizes(sizes),
        heatmaps=speed_plan.parse_names(heatmaps, speed_plan.HEATMAPS, "--heatmaps"),
        seconds=seconds,
        workers=workers,
    )
    with console.step_progress() as progress:
        result = run_speed(config, progress.step)
    report_speed(result)


@benchmark_app.command()
@_reporting
def soak(
    images: ImagesOrRendered = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "-m",
            "--model",
            help="Model folder, or a single .onnx file; else ./model or, without it and without IMAGES, one trained on "
            "rendered parts.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for soak.json, soak.md and soak.png.")] = Path(
        "inspectad-soak"
    ),
    count: Annotated[
        int, typer.Option("--images", min=2_000, help="How many images are scanned, the same ones again and again.")
    ] = 100_000,
    watch: Annotated[
        bool, typer.Option("--watch", help="As a hot folder: images come, and are deleted when they have their row.")
    ] = False,
    odd: Annotated[bool, typer.Option(help="One image in ten is a damaged file, or of another depth or shape.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Scan very many images and check that nothing grows, no row is lost and it gets no slower.

    inspectad benchmark soak ./line_images
    """
    try:
        from inspectad.benchmark.soak import SoakConfig, check, run_soak
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"onnxruntime does not load ({error}); 'inspectad doctor' says more") from error
    from inspectad.benchmark.show import report_soak

    config = SoakConfig(images=images, model=model, output=output, count=count, odd=odd, watch=watch, device=device)
    with console.step_progress() as progress:
        result = run_soak(config, progress.step)
    report_soak(result)
    check(result)


@app.command()
@_reporting
def info(
    model: ModelOption = Path("model"),
    json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """Show what a model is: method, input, calibration, training images, parity."""
    from inspectad.detector import OnnxDetector
    from inspectad.manifest import manifest_to_json

    detector = OnnxDetector.load(model, "cpu")
    if json:
        typer.echo(manifest_to_json(detector.manifest))
        return
    console.console(stderr=False).print(console.manifest_table(detector.manifest, detector.digest))


@app.command()
@_reporting
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the demo.")] = Path("inspectad-demo"),
) -> None:
    """Render a part with defects, train, scan with heatmaps: the whole job in under a minute, offline."""
    from inspectad.api import prepare_training

    prepare_training()
    from inspectad.demo import run_demo

    with console.step_progress() as progress:
        result = run_demo(output, progress.step)
    console.report_demo(result)


@app.command()
@_reporting
def doctor() -> None:
    """Say what works on this machine, and the command that mends what does not."""
    from inspectad.doctor import examine

    findings = examine()
    console.console(stderr=False).print(console.findings_table(findings))
    if any(f.state == "broken" for f in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    app()
