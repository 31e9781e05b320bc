"""Chunks of images through a child process; one that dies of an image is replaced, and the image says so."""

from collections.abc import Callable, Sequence
from typing import Self

from inspectad.ray_engine.child import Child, DeadChildError, FailedError
from inspectad.ray_engine.inspector import Inspector, Inspects, unreadable
from inspectad.ray_engine.job import Found, Job
from inspectad.ray_engine.listing import Name


class Supervised:
    """Inspects as `Inspector` does, and survives what an image may do to it."""

    def __init__(self, job: Job, model: str, opened: Callable[[Job], Inspects] = Inspector) -> None:
        """Args: model: its short hash, for rows. opened: makes what inspects, in the child."""
        self._job = job
        self._model = model
        self._opened = opened
        self._child: Child | None = Child(opened, job)
        self.note = self._child.note

    def inspect(self, names: Sequence[Name]) -> list[Found]:
        """A row for each. Raises: InspectadError: what is not the images' fault."""
        try:
            return self._run(names)
        except (DeadChildError, FailedError):
            return [self._alone(name) for name in names]  # which of them it was

    def _alone(self, name: Name) -> Found:
        try:
            return self._run([name])[0]
        except DeadChildError as error:
            why = f"the process that decoded it died ({error}); look at this file"
        except FailedError as error:
            why = f"inspecting it failed ({error}); look at this file"
        return unreadable(name, " ".join(why.split()), self._model, self._job.kind)

    def _run(self, names: Sequence[Name]) -> list[Found]:
        if self._child is None:
            self._child = Child(self._opened, self._job)
        try:
            return self._child.inspect(names)
        except DeadChildError:
            self._child = None
            raise

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
