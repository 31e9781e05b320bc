"""A training in stages, one after the other: steps, checkpoints, what is said meanwhile, and the end if it diverges."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from inspectad.checkpoint import Checkpoints
from inspectad.errors import TrainingError
from inspectad.nn.adam_state import adam_tensors, restore_adam
from inspectad.progress import Step, silent

_SECONDS: Final = 60.0  # between checkpoints, and between pictures
_LOOK_EVERY: Final = 10  # steps between looks at the losses: each look waits for a GPU


class Stage(ABC):
    """One stage at work.

    Attributes:
        title: what it does, for people: "learning impressions".
        steps: how many it takes.
        loss_names: of what `step` returns.
        networks: all that it changes, by a name.
        optimisers: by a name.
    """

    title: str
    steps: int
    loss_names: tuple[str, ...]
    networks: Mapping[str, nn.Module]
    optimisers: Mapping[str, torch.optim.Adam]

    @abstractmethod
    def step(self, number: int) -> Tensor:
        """Learn from the images of a step, which its number decides. Returns: the losses, (len(loss_names),)."""

    @abstractmethod
    def finish(self) -> None:
        """After the last step: what the networks need to be used."""


def run_stage(
    stage: Stage,
    checkpoints: Checkpoints | None = None,
    name: str = "fit",
    say: Step = silent,
    picture: Callable[[], None] | None = None,
) -> tuple[float, ...]:
    """All steps that an earlier, stopped training has not taken.

    Args: name: of its checkpoint; picture: called about every minute, to draw what was learnt.
    Returns: the last losses.
    Raises: TrainingError: a loss is no longer a number; the last checkpoint, of before that, stays.
    """
    done, losses = _resume(stage, checkpoints, name)
    begun_at, saved = done, time.monotonic()
    pending: list[Tensor] = []
    while done < stage.steps:
        if not pending:
            say(stage.title, done, stage.steps, _detail(stage, losses))
        pending.append(stage.step(done))
        done += 1
        if len(pending) < _LOOK_EVERY and done < stage.steps:
            continue
        losses = _checked(stage, pending, done)
        pending = []
        if done < stage.steps and time.monotonic() - saved > _SECONDS:  # the end is saved when it is finished
            _save(stage, done, losses, checkpoints, name)
            if picture is not None:
                picture()
            saved = time.monotonic()
    if begun_at < stage.steps:
        stage.finish()
        _save(stage, done, losses, checkpoints, name)
    for network in stage.networks.values():
        network.eval().requires_grad_(False)
        network.zero_grad()  # a gradient takes as much memory as the weights
    say(stage.title, stage.steps, stage.steps, _detail(stage, losses))
    return losses


def _checked(stage: Stage, pending: list[Tensor], done: int) -> tuple[float, ...]:
    """The last of these losses. Args: done: steps, of which these are the last."""
    rows = torch.stack(pending).tolist()
    for number, row in enumerate(rows, start=done - len(rows) + 1):
        broken = [f"{n} loss is {v}" for n, v in zip(stage.loss_names, row, strict=True) if not math.isfinite(v)]
        if broken:
            raise TrainingError(
                f"{stage.title}, step {number} of {stage.steps}: the {', the '.join(broken)}; training came apart. The "
                "checkpoint of before is kept. Train again with another --seed; if it happens again, use --method "
                "memory_bank"
            )
    return tuple(rows[-1])


def _detail(stage: Stage, losses: tuple[float, ...]) -> str:
    """For people, while it goes."""
    return ", ".join(f"{name} {loss:.3g}" for name, loss in zip(stage.loss_names, losses, strict=False))


def _save(stage: Stage, done: int, losses: tuple[float, ...], checkpoints: Checkpoints | None, name: str) -> None:
    if checkpoints is None:
        return
    tensors = {"step": torch.tensor(done), "losses": torch.tensor(losses, dtype=torch.float64)}
    for prefix, network in stage.networks.items():
        tensors |= {f"{prefix}.{key}": value for key, value in network.state_dict().items()}
    if done < stage.steps:
        for prefix, optimiser in stage.optimisers.items():
            tensors |= adam_tensors(optimiser, f"adam.{prefix}.")
    checkpoints.save(name, tensors)


def _resume(stage: Stage, checkpoints: Checkpoints | None, name: str) -> tuple[int, tuple[float, ...]]:
    """Put back what an earlier training left. Returns: steps done, and the last losses."""
    tensors = checkpoints.load(name) if checkpoints is not None else None
    if tensors is None:
        return 0, ()
    for prefix, network in stage.networks.items():
        start = f"{prefix}."
        network.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    for prefix, optimiser in stage.optimisers.items():
        restore_adam(optimiser, tensors, f"adam.{prefix}.")
    return int(tensors["step"]), tuple(tensors["losses"].tolist())
