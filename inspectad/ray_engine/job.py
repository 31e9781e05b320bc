"""What every node is told of a scan, and what comes back of a chunk of images. Plain values, since they travel."""

from collections import Counter
from dataclasses import dataclass, field

from inspectad.ray_engine.place import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How images are to be judged.

    Attributes:
        model: the bytes of ``model.onnx``, whose checksums each process verifies.
        device: as of ``scan``; in a worker with a GPU, that one.
        workers: threads that read and decode in one process.
        kind: format of the records.
        root: what the names of images are relative to.
        environment: of the program that the user started, what concerns inspectad.
        marker: must be visible below ``output`` on every node, or the results would be spread over their disks.
    """

    model: bytes
    device: str
    workers: int
    root: Place
    output: Place
    marker: str
    kind: str
    heatmaps: str
    maps: bool
    threshold: float | None
    tile: int | str | None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """Of one image: its record (`inspectad.results.format_row`), its verdict, and whether it was distorted."""

    record: bytes
    verdict: str
    is_distorted: bool = False


@dataclass(slots=True)
class Counts:
    """Of a shard, or of all of them."""

    verdicts: Counter[str] = field(default_factory=Counter)
    distorted: list[str] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)

    def add(self, other: "Counts", most_named: int) -> None:
        """Count another one in. Args: most_named: of the distorted images, how many are remembered."""
        self.verdicts.update(other.verdicts)
        self.distorted += other.distorted[: max(most_named - len(self.distorted), 0)]
        self.notes |= other.notes
