"""``inspectad scan``: one row an image, in order, as soon as it is known. `pipeline` has the way of one image."""

import contextlib
import errno
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from inspectad.atomic import output_error, remove_leftovers, write_atomically
from inspectad.detector import OnnxDetector
from inspectad.errors import InspectadError, OutputError, UsageError
from inspectad.heap import Keeper, give_back
from inspectad.image_files import RESULTS_MARKER, ImageFile, expand_arguments, read_path_list
from inspectad.judge import Judge, heatmap_path, map_path
from inspectad.lock import locked
from inspectad.manifest import Manifest
from inspectad.network import Network, share
from inspectad.output_links import check_stays_inside
from inspectad.pipeline import Prepared, inspect_files
from inspectad.records import Inspection
from inspectad.results import (
    CSV_HEADER,
    FORMATS,
    SHARDS,
    Done,
    RowWriter,
    format_row,
    read_done,
    read_names,
    significant,
)
from inspectad.tiles import AUTO, parse_tile, seen_aspect, tile_for

UNCALIBRATED: Final = (
    "a score is that of the worst of an image's tiles, and the threshold was not calibrated for these: expect more "
    "false rejects; train with --tile, or find a --threshold by good images"
)

MOST_NAMED: Final = 1000  # images of another aspect ratio that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanConfig:
    """What to scan, with what, and where to write.

    Attributes:
        images: folders, files, glob patterns; ``-`` for a list of paths on standard input.
        null: that list is separated by zero bytes instead of newlines.
        heatmaps: ``all``, or ``ng`` for those of NG images alone.
        threshold: replaces the calibrated one; the map threshold is scaled with it.
        tile: longer side of the tiles that images are cut into, source pixels; None or ``auto`` as in training.
        batch_size: images a run of the network; 0 chooses, see `inspectad.network.share`.
        workers: images that are worked on at a time; 0 chooses.
        watch: ``images`` is one folder; go on with what comes into it, until interrupted. What has a row stays, as
            with ``resume``.
    """

    images: tuple[str, ...]
    output: Path = Path("results")
    format: str = "csv"
    heatmaps: str = ""
    maps: bool = False
    threshold: float | None = None
    tile: int | str | None = None
    batch_size: int = 0
    workers: int = 0
    resume: bool = False
    null: bool = False
    watch: bool = False

    @property
    def rows_place(self) -> str:
        """Where the rows are, for people."""
        return str(_rows_path(self, self.format))

    @property
    def keeps_rows(self) -> bool:
        return self.resume or self.watch


@dataclass(slots=True)
class ScanSummary:
    """What a scan found.

    Attributes:
        verdicts: of the images inspected now.
        earlier: of the rows that were there already (``--resume``).
        odd_aspect: images of another aspect ratio than the training images, at most 1,000.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    earlier: Counter[str] = field(default_factory=Counter)
    odd_aspect: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images(self) -> int:
        return self.verdicts.total()

    @property
    def all_verdicts(self) -> Counter[str]:
        """Of all rows in the results, which is what the exit code speaks of."""
        return self.verdicts + self.earlier


def scan(
    config: ScanConfig,
    detector: OnnxDetector,
    network: Network | None = None,
    *,
    on_total: Callable[[int], None] = lambda _: None,
    on_row: Callable[[Inspection], None] = lambda _: None,
    on_warning: Callable[[str], None] = lambda _: None,
    stream: BinaryIO | None = None,
) -> ScanSummary:
    """Inspect all images, write a row for each, and count.

    Args:
        network: what runs the detector for many workers, left open; made of it if absent.
        on_total: told how many images there are, when that is known beforehand.
        on_row: told each row once it is on disk.
        on_warning: told what a user should know at once; of a watched folder, in a thread of its own.
        stream: gets the same rows (standard output, when it is a pipe).
    Raises:
        UsageError: nothing there to scan under that name.
        InspectadError: no image at all, or a result that cannot be written, or ten images in a row that failed for
            reasons of our own. Rows written so far stay.
        OutputError: another scan writes to the same folder.
    """
    with locked(config.output) as warning:
        if warning:
            on_warning(warning)
        return _scan(config, detector, network, on_total, on_row, on_warning, stream)


def _scan(
    config: ScanConfig,
    detector: OnnxDetector,
    network: Network | None,
    on_total: Callable[[int], None],
    on_row: Callable[[Inspection], None],
    on_warning: Callable[[str], None],
    stream: BinaryIO | None,
) -> ScanSummary:
    started = time.perf_counter()
    kind = config.format
    manifest = tiled(config.tile, detector.manifest)
    judge = Judge(detector, config.output, config.threshold, heatmaps=config.heatmaps, maps=config.maps)
    _check_output(config)
    done = _already_done(config, detector, judge.threshold)
    summary = ScanSummary(earlier=done.verdicts)
    files = _images_to_come(config, done, on_warning) if config.watch else _images_to_scan(config, on_total, done)
    remove_temporary(config.output)
    write_atomically(config.output / RESULTS_MARKER, tile_note(config.tile, detector.manifest))
    if manifest.tiling != detector.manifest.tiling:
        on_warning(UNCALIBRATED)
    _clear(config)  # not before the images were found: a misspelt name must not cost the last results
    keeper = Keeper()
    with RowWriter(_rows_path(config, kind), kind, done.whole_bytes) as writer, contextlib.ExitStack() as stack:
        if stream is not None and kind == "csv":
            _send(stream, CSV_HEADER)
        if network is None:
            network = stack.enter_context(contextlib.closing(share([detector], config.batch_size)))
        # Ended before the network is closed: its workers wait for answers.
        rows = stack.enter_context(
            contextlib.closing(inspect_files(files, manifest, network, judge.finish, workers=config.workers))
        )
        for prepared, row in rows:
            record = format_row(row, kind)
            writer.write(record)
            if stream is not None:
                _send(stream, record)
            summary.verdicts[row.verdict.value] += 1
            _note_aspect(summary, manifest, prepared)
            if config.watch and summary.odd_aspect == [row.image]:  # there is no end at which to say so
                on_warning(f"{row.image}: another aspect ratio than the training images, so it is distorted")
            on_row(row)
            if keeper.is_due(math.prod(prepared.source_hw)):
                give_back()
    summary.seconds = time.perf_counter() - started
    if not summary.all_verdicts:
        raise InspectadError(
            "no image was named on standard input" if "-" in config.images else no_images(config.images)
        )
    return summary


def tiled(wanted: int | str | None, manifest: Manifest) -> Manifest:
    """The model's manifest, with the tiles that were asked for. Raises: UsageError."""
    tile = parse_tile(wanted)
    if tile is None or tile == AUTO:
        return manifest
    if manifest.tiling is not None and tile == max(manifest.tiling.tile_hw):
        return manifest
    return replace(manifest, tiling=tile_for(int(tile), manifest.input_size_hw))


def tile_note(tile: int | str | None, manifest: Manifest) -> bytes:
    """What the marker of the results says of tiles: nothing where they are those of the model."""
    tiling = tiled(tile, manifest).tiling
    return b"" if tiling == manifest.tiling else f"{tiling}\n".encode()


def no_images(images: Sequence[str]) -> str:
    """What is said where nothing was found."""
    return f"{', '.join(images)}: no images in there (looked for .png, .jpg, .bmp, .tif, .webp and the like)"


def _images_to_scan(config: ScanConfig, on_total: Callable[[int], None], done: Done) -> Iterator[ImageFile]:
    if config.images == ("-",):
        if sys.stdin is None:
            raise InspectadError("standard input is closed; name folders or files instead")
        # Unbuffered: the reading thread may still wait there when the program ends, and must hold no lock of stdin.
        stdin = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115
        listed: Iterable[ImageFile] = read_path_list(stdin, Path.cwd(), b"\0" if config.null else b"\n")
    elif "-" in config.images:
        raise UsageError("'-' (paths on standard input) cannot be mixed with other images")
    else:
        found = expand_arguments(config.images, exclude=config.output)
        if not found:
            raise InspectadError(no_images(config.images))
        on_total(sum(f.name not in done.images for f in found))
        listed = _let_go(found)
    return (file for file in listed if file.name not in done.images)


def _let_go(files: list[ImageFile]) -> Iterator[ImageFile]:
    """Each once; a million of them, and what their paths come to hold, are not kept until the end."""
    files.reverse()
    while files:
        yield files.pop()


def _images_to_come(config: ScanConfig, done: Done, on_warning: Callable[[str], None]) -> Iterator[ImageFile]:
    from inspectad.watch import watch_folder  # only here is watchdog needed

    if len(config.images) != 1 or config.images == ("-",):
        raise UsageError(
            f"--watch takes one folder, not {' '.join(config.images)}; give the one that the images come into"
        )
    rows = _rows_path(config, config.format)
    rows_ns = rows.stat().st_mtime_ns if done.images else 0
    return watch_folder(Path(config.images[0]), config.output, done.images, rows_ns=rows_ns, say=on_warning)


def _already_done(config: ScanConfig, detector: OnnxDetector, threshold: float) -> Done:
    """What ``--resume`` and ``--watch`` need not do again. Raises: OutputError when they were judged otherwise."""
    path = _rows_path(config, config.format)
    if not config.keeps_rows:
        return Done()
    earlier = read_done(path, config.format)
    marker = config.output / RESULTS_MARKER
    if earlier.images and marker.is_file() and marker.read_bytes() != tile_note(config.tile, detector.manifest):
        raise OutputError(
            f"{path}: its rows were made with other tiles; give the same --tile, or another folder with -o"
        )
    if not earlier.models <= {detector.digest[:12]} or not earlier.thresholds <= {str(significant(threshold))}:
        raise OutputError(
            f"{path}: its rows were made by another model or threshold; "
            f"scan {'' if config.watch else 'without --resume, or '}into another folder with -o"
        )
    return earlier


def _check_output(config: ScanConfig) -> None:
    """Raises: OutputError: rows of another kind, or a link that leads out of the output."""
    if (shards := config.output / SHARDS).is_dir() and (config.output / RESULTS_MARKER).exists():
        raise OutputError(f"{shards}: rows of a scan by --engine ray; choose another folder with -o")
    for kind in FORMATS:
        check_stays_inside(config.output, _rows_path(config, kind))  # it is read, emptied and written on


def remove_temporary(output: Path) -> None:
    """What a killed scan left of files that it was writing. Nobody else is at work here: the lock is ours."""
    remove_leftovers(output)
    for pictures in (heatmap_path(output, "x").parent, map_path(output, "x").parent):
        with contextlib.suppress(OutputError):  # a link, which leads elsewhere
            check_stays_inside(output, pictures)
            remove_leftovers(pictures, below=True)


def _clear(config: ScanConfig) -> None:
    """Remove what an earlier scan left here: an old heatmap beside a new row would show another model's opinion.

    Rows first get another name: killed meanwhile, there must be no rows whose pictures are gone. The next start, with
    ``--resume`` too, then removes the other pictures before it writes any.
    """
    for kind in FORMATS:
        rows, doomed = _rows_path(config, kind), config.output / f".inspectad-doomed.{kind}"
        _remove_pictures(config, read_names(doomed, kind))
        _remove(doomed)
        if not config.keeps_rows:
            deque(read_names(rows, kind), maxlen=0)  # a file that is not ours is refused before anything is removed
            _set_aside(rows, doomed)
            _remove_pictures(config, read_names(doomed, kind))
            _remove(doomed)


def _set_aside(rows: Path, doomed: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(rows, doomed)
    except OSError as error:
        raise output_error(rows, error) from error


def _remove_pictures(config: ScanConfig, names: Iterable[str]) -> None:
    root = config.output.resolve()
    for name in names:
        for path in (heatmap_path(config.output, name), map_path(config.output, name)):
            with contextlib.suppress(ValueError):  # a name with a zero byte: there is no such file
                if path.resolve().is_relative_to(root):  # a results file may come from anybody
                    _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # then it never was there
            raise output_error(path, error) from error


def _rows_path(config: ScanConfig, kind: str) -> Path:
    return config.output / f"results.{kind}"


def _note_aspect(summary: ScanSummary, manifest: Manifest, prepared: Prepared) -> None:
    if is_distorted(prepared, manifest) and len(summary.odd_aspect) < MOST_NAMED:
        summary.odd_aspect.append(prepared.file.name)


def is_distorted(prepared: Prepared, manifest: Manifest) -> bool:
    """Whether the image has another aspect ratio than the training images."""
    low, high = manifest.aspect_range
    if not prepared.source_hw[0]:
        return False
    return not low / 1.1 <= seen_aspect(prepared.source_hw, manifest.tiling) <= high * 1.1


def _send(stream: BinaryIO, record: bytes) -> None:
    try:
        stream.write(record)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: cannot be written ({error.strerror}); free some space") from error
