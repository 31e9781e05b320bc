"""Chunks of images through a child process; one that dies of an image is replaced, and the image says so."""

import platform
from collections.abc import Callable, Sequence
from typing import Self

from inspectad.errors import InspectadError
from inspectad.pipeline import MOST_FAILURES
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
        self._failures = 0

    def inspect(self, names: Sequence[Name]) -> list[Found]:
        """A row for each. Raises: InspectadError: what is not the images' fault."""
        try:
            return self._run(names)
        except (DeadChildError, FailedError):
            return [self._alone(name) for name in names]  # which of them it was

    def _alone(self, name: Name) -> Found:
        """Raises: InspectadError where so many images failed one after the other that it is not the images."""
        try:
            found = self._run([name])[0]
            self._failures = 0
            return found
        except DeadChildError as error:
            why = f"the process that decoded it died ({error}); look at this file"
        except FailedError as error:
            why = f"inspecting it failed ({error}); look at this file"
        self._failures += 1
        if self._failures == MOST_FAILURES:
            raise InspectadError(
                f"{self._failures} images in a row failed on {platform.node()}, the last with: {why}; the model or "
                "this machine is broken. Mend it, and go on with --resume"
            )
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
