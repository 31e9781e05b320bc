"""What the times of single stages say of a pipeline made of them. Pure; README, "Speed", defines each figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

READ: Final = ("read", "decode", "resize")
INFER: Final = "infer"
JUDGE: Final = ("judge",)
DRAW: Final = ("heatmap", "encode", "write")
_LEAST_MS: Final = 1e-6  # what a stage takes at least: clocks tick


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured of a stage or of a pipeline.

    Attributes:
        images_per_s: with all cores.
        core_ms: milliseconds of processor time an image, of all threads of the process together.
    """

    images_per_s: float
    core_ms: float


@dataclass(frozen=True, slots=True)
class Ratios:
    """How good a pipeline is, given its stages.

    Attributes:
        bottleneck: the stage that takes most of the machine: the most core time or, where it is slower than all that
            the cores have to do, the network on the GPU.
        slowest: the stage with the least images/s when it runs alone on all cores.
        slowest_images_per_s: what it reaches.
        bound_images_per_s: what the machine could do at best.
        efficiency: the pipeline's images/s over those of the slowest stage alone.
        efficiency_limit: how high that can be: the bound over the slowest stage alone. Below 1 where the stages share
            the cores, since the slowest has them all for itself when it runs alone.
        of_bound: the pipeline's images/s over the bound.
        of_turns: the pipeline's images/s over what the stages would do in turns, see `images_per_s_in_turns`.
    """

    bottleneck: str
    slowest: str
    slowest_images_per_s: float
    bound_images_per_s: float
    efficiency: float
    efficiency_limit: float
    of_bound: float
    of_turns: float


def stages_of(heatmaps: str) -> tuple[str, ...]:
    """The stages that an image passes. Args: heatmaps: ``off`` or ``all``."""
    return (*READ, INFER, *JUDGE, *(DRAW if heatmaps == "all" else ()))


def images_per_s_at_best(stages: dict[str, Timing], cores: int, *, on_gpu: bool) -> float:
    """What the machine could do at best.

    On a CPU all stages share the cores: cores / sum of the core-seconds an image. With a GPU the smaller of the
    network alone and of what the cores can do of the other stages.
    """
    shared = [timing.core_ms for name, timing in stages.items() if not (on_gpu and name == INFER)]
    on_cores = 1000 * cores / max(sum(shared), _LEAST_MS)
    return min(on_cores, stages[INFER].images_per_s) if on_gpu else on_cores


def images_per_s_in_turns(stages: dict[str, Timing], *, on_gpu: bool) -> float:
    """The same from what each stage reaches alone: 1 / sum of 1 / (images/s); with a GPU the network is not in the sum.

    What other programs take of the machine slows stages and pipeline alike, where the bound knows nothing of it; but a
    stage that cannot use all cores makes it too low.
    """
    in_turns = 1 / sum(1 / t.images_per_s for name, t in stages.items() if not (on_gpu and name == INFER))
    return min(in_turns, stages[INFER].images_per_s) if on_gpu else in_turns


def cores_used(timing: Timing) -> float:
    """How many cores something kept busy on average."""
    return timing.images_per_s * timing.core_ms / 1000


def ratios(images_per_s: float, stages: dict[str, Timing], cores: int, *, on_gpu: bool) -> Ratios:
    """Args: images_per_s: of the pipeline. stages: of this pipeline, by name. cores: that it may use."""
    slowest = min(stages, key=lambda name: stages[name].images_per_s)
    bound = images_per_s_at_best(stages, cores, on_gpu=on_gpu)
    alone = stages[slowest].images_per_s
    return Ratios(
        bottleneck=_bottleneck(stages, bound, on_gpu=on_gpu),
        slowest=slowest,
        slowest_images_per_s=alone,
        bound_images_per_s=bound,
        efficiency=images_per_s / alone,
        efficiency_limit=bound / alone,
        of_bound=images_per_s / bound,
        of_turns=images_per_s / images_per_s_in_turns(stages, on_gpu=on_gpu),
    )


def _bottleneck(stages: dict[str, Timing], bound: float, *, on_gpu: bool) -> str:
    if on_gpu and stages[INFER].images_per_s <= bound:
        return f"{INFER} (GPU)"
    return max((n for n in stages if not (on_gpu and n == INFER)), key=lambda name: stages[name].core_ms)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one image from file to verdict, no other being on its way; linear between ranks."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int


def latency(seconds: Sequence[float]) -> Latency:
    """Args: seconds of each image."""
    p50, p95, p99 = (float(v) for v in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
    return Latency(p50, p95, p99, len(seconds))


@dataclass(frozen=True, slots=True)
class TrunkRatio:
    """Medians of one image on one CPU thread, both run in turns.

    Attributes:
        graph_ms: of the whole graph, fp32.
        backbone_ms: of its convolutional trunk: all that is computed before patches are compared.
        ratio: the first over the second.
    """

    graph_ms: float
    backbone_ms: float
    ratio: float
    runs: int


def median(timings: Sequence[Timing]) -> Timing:
    """Of several rounds, each figure by itself."""
    return Timing(
        float(np.median([t.images_per_s for t in timings])),
        float(np.median([t.core_ms for t in timings])),
    )
