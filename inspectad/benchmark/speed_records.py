"""What ``benchmark speed`` measured: plain values, which ``speed.json`` holds as they are."""

from dataclasses import dataclass
from pathlib import Path

from inspectad.benchmark.speed_process import ColdStart, PeakMemory
from inspectad.benchmark.speed_ratios import Latency, Ratios, Timing, TrunkRatio


@dataclass(frozen=True, slots=True)
class Target:
    """A model on a device. Attributes: input_hw: pixels of the network's input; path: of its file."""

    device: str
    precision: str
    input_hw: tuple[int, int]
    path: Path

    def __str__(self) -> str:
        return f"{self.device} {self.precision} {self.input_hw[1]} x {self.input_hw[0]}"


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """The whole scan.

    Attributes:
        heatmaps: ``off`` or ``all``.
        timing: core_ms is of the whole process here.
    """

    heatmaps: str
    timing: Timing
    ratios: Ratios


@dataclass(frozen=True, slots=True)
class BatchRun:
    """One batch size. Attributes: workers: threads of the pipeline; infer: the network alone, called by as many."""

    batch_size: int
    workers: int
    infer: Timing
    pipelines: tuple[PipelineRun, ...]


@dataclass(frozen=True, slots=True)
class TargetRun:
    """All of one model on one device.

    Attributes:
        stages: alone, with all cores, by name; all but the network, which depends on the batch size.
        latency: by ``off`` and ``all`` heatmaps.
    """

    device: str
    precision: str
    input_hw: tuple[int, int]
    stages: dict[str, Timing]
    batches: tuple[BatchRun, ...]
    latency: dict[str, Latency]
    cold_start: ColdStart
    peak_memory: PeakMemory

    @property
    def name(self) -> tuple[str, str, str]:
        """Device, precision, width x height of the input."""
        return self.device, self.precision, f"{self.input_hw[1]} x {self.input_hw[0]}"


@dataclass(frozen=True, slots=True)
class Images:
    """What it was measured on. Attributes: found: in the folder; used: of them; means of the used ones."""

    found: int
    used: int
    unreadable: int
    megapixels: float
    file_mb: float
    heatmap_mb: float
    rendered: bool


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """Everything.

    Attributes:
        machine: what it ran on, with versions.
        cores: that the process may use, and that the ratios reckon with.
        skipped: device (with precision and size, where it is these) to why it was not measured.
        backbone: the graph against its backbone alone, by input size; {} where the model cannot be exported here.
        notes: sentences for people.
    """

    machine: dict[str, str]
    cores: int
    seconds: float
    rounds: int
    images: Images
    targets: tuple[TargetRun, ...]
    skipped: dict[str, str]
    backbone: dict[str, TrunkRatio]
    notes: tuple[str, ...]
