"""Very many names in little memory: which of them are known, and nothing else."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

import numpy as np
import numpy.typing as npt

_FRESH: Final = 2**16
_Hashes = npt.NDArray[np.int64]


class NameSet:
    """A set that keeps the names' 64-bit hashes, in 8 bytes each: a watched line makes millions of names a day.

    So it cannot say which names it holds, and takes a new name for a known one with a probability of its length / 2^64:
    among ten million names that happens once in 370,000 such sets. The hashes are Python's own, whose key is another in
    each run, so nobody can choose names that collide.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._fresh: set[int] = set()
        self._sorted: list[_Hashes] = []  # each at least twice as long as the next
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Know this one."""
        if name in self:
            return
        self._fresh.add(hash(name))
        if len(self._fresh) >= _FRESH:
            self._merge()

    def __contains__(self, name: object) -> bool:
        found = hash(name)
        return found in self._fresh or any(_holds(hashes, found) for hashes in self._sorted)

    def __len__(self) -> int:
        return len(self._fresh) + sum(map(len, self._sorted))

    def __eq__(self, other: object) -> bool:
        """Whether these are the names of a set, or of another one of these."""
        if isinstance(other, NameSet):
            return np.array_equal(self._hashes(), other._hashes())
        return isinstance(other, AbstractSet) and len(self) == len(other) and all(name in self for name in other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _hashes(self) -> _Hashes:
        fresh = np.fromiter(self._fresh, np.int64, len(self._fresh))
        return np.sort(np.concatenate([fresh, *self._sorted]))

    def _merge(self) -> None:
        merged = np.sort(np.fromiter(self._fresh, np.int64, len(self._fresh)))
        self._fresh = set()
        while self._sorted and len(self._sorted[-1]) < 2 * len(merged):
            merged = np.sort(np.concatenate([self._sorted.pop(), merged]), kind="stable")  # merges sorted parts
        self._sorted.append(merged)


def _holds(hashes: _Hashes, wanted: int) -> bool:
    place = int(hashes.searchsorted(wanted))
    return place < len(hashes) and int(hashes[place]) == wanted
