"""A process that inspects images for another one, which outlives it when an image kills it.

Both ends are ours: pickles pass between them through pipes. A child whose parent is gone finds its standard input
closed, and ends.
"""

import contextlib
import os
import pickle
import platform
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from inspectad.errors import InspectadError
from inspectad.ray_engine.job import Found, Job
from inspectad.ray_engine.listing import Name

if TYPE_CHECKING:
    from inspectad.ray_engine.inspector import Inspects


_ANSWER_S: Final = 1800.0
"""For a chunk of images: one whose decoding never ends must not hold the job for ever."""
_PATIENCE_S: Final = 10.0


class DeadChildError(Exception):
    """The process ended without an answer; the text says how."""


class FailedError(Exception):
    """It raised what nobody expects; the text says what."""


class Child:
    """The parent's end."""

    def __init__(self, opened: "Callable[[Job], Inspects]", job: Job) -> None:
        """Args: opened: runs in the child. Raises: what it raises; InspectadError when the child dies of it."""
        # The same modules as here: Ray puts folders into sys.path that the environment does not name.
        environment = {**os.environ, **job.environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            self.note: str = self._ask((opened, job))
        except DeadChildError as error:
            raise InspectadError(
                f"the process that inspects images cannot start on {platform.node()}: {error}"
            ) from error
        except BaseException:
            self.close()
            raise

    def inspect(self, names: Sequence[Name]) -> list[Found]:
        """Raises: DeadChildError, FailedError; InspectadError: what is not the images' fault."""
        found: list[Found] = self._ask(list(names))
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(question, self._process.stdin)
            self._process.stdin.flush()
            if not self._answers_within(_ANSWER_S):
                self.close()
                raise DeadChildError(f"no answer within {_ANSWER_S:.0f} s")
            is_error, answer = pickle.load(self._process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may live, and have answered nonsense
                self._process.wait(timeout=_PATIENCE_S)
            self.close()
            raise DeadChildError(_ended(self._process.returncode)) from error
        if is_error:
            raise answer
        return answer

    def _answers_within(self, seconds: float) -> bool:
        """Whether it says anything, or is dead."""
        assert self._process.stdout is not None
        if sys.platform == "win32":  # pipes cannot be waited for there
            return True
        return bool(select.select([self._process.stdout], [], [], seconds)[0])


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {-code}, {signal.Signals(-code).name}"
    return f"signal {-code}"


def main() -> None:
    """The child's end: one answer for each question, until there are no more."""
    questions = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on a terminal reaches the whole group; the parent decides
    inspects: Inspects | None = None
    while True:
        try:
            question = pickle.load(questions)
        except EOFError:
            return
        try:
            if inspects is None:
                opened, job = question
                inspects = opened(job)
                answer: object = inspects.note
            else:
                answer = inspects.inspect(question)
        except InspectadError as error:
            reply: tuple[bool, object] = True, error
        except Exception as error:  # which may hold what cannot travel
            reply = True, FailedError(f"{type(error).__name__}: {error}")
        else:
            reply = False, answer
        pickle.dump(reply, answers)
        answers.flush()
