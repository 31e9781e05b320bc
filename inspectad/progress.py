"""How a long job says how far it is."""

from typing import Protocol


class Step(Protocol):
    """Told what is being done, how many of how many parts of it are, and what there is to say of it (losses)."""

    def __call__(self, text: str, done: int, total: int, detail: str = "", /) -> None: ...


def silent(_text: str, _done: int, _total: int, _detail: str = "", /) -> None:
    """For jobs that nobody watches."""
