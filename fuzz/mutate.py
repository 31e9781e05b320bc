"""Mutations of real files, by a random generator that the caller seeds: the same seed gives the same bytes."""

import random
from collections.abc import Callable, Sequence
from typing import Final

_MOST_BYTES: Final = 1 << 16
_NUMBERS: Final = (0, 1, 2, 3, 4, 7, 8, 12, 16, 40, 127, 128, 255, 256, 32767, 32768, 65500, 65535, 65536)
_LARGE: Final = (2**20, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63, 2**64 - 1)


def mutate(rng: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """A real input with one to eight changes.

    Args:
        seeds: real inputs.
        words: what the format has a meaning for.
    """
    data = bytearray(rng.choice(seeds))
    for _ in range(1 << rng.randrange(4)):
        rng.choice(_CHANGES)(rng, data, seeds, words)
    return bytes(data[:_MOST_BYTES])


Change = Callable[[random.Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def _at(rng: random.Random, data: bytearray) -> int:
    """A place: anywhere, or in the header, where most of the decisions are."""
    length = len(data) if rng.random() < 0.5 else min(len(data), 128)
    return rng.randrange(length + 1)


def _flip_bit(rng: random.Random, data: bytearray, *_: object) -> None:
    if data:
        data[_at(rng, data) - 1] ^= 1 << rng.randrange(8)


def _set_byte(rng: random.Random, data: bytearray, *_: object) -> None:
    if data:
        data[_at(rng, data) - 1] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _set_number(rng: random.Random, data: bytearray, *_: object) -> None:
    """A length, size or offset that is another one."""
    size = rng.choice((1, 2, 4, 4, 8))
    value = rng.choice(_LARGE if rng.random() < 0.4 else _NUMBERS) % (1 << 8 * size)
    at = _at(rng, data)
    data[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))


def _truncate(rng: random.Random, data: bytearray, *_: object) -> None:
    del data[_at(rng, data) :]


def _remove(rng: random.Random, data: bytearray, *_: object) -> None:
    at = _at(rng, data)
    del data[at : at + rng.choice((1, 2, 4, 16, 256))]


def _repeat(rng: random.Random, data: bytearray, *_: object) -> None:
    at, length = _at(rng, data), rng.choice((1, 4, 16, 256))
    data[at:at] = data[at : at + length] * rng.choice((1, 2, 16, 64))
    del data[_MOST_BYTES:]


def _insert_word(rng: random.Random, data: bytearray, _: object, words: Sequence[bytes]) -> None:
    at = _at(rng, data)
    data[at : at + rng.choice((0, 0, 1, 4))] = rng.choice(words)


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes], _: object) -> None:
    other = rng.choice(seeds)
    start, at = rng.randrange(len(other) + 1), _at(rng, data)
    data[at:] = other[start:]


_CHANGES: Final[tuple[Change, ...]] = (
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_byte,
    _set_number,
    _set_number,
    _truncate,
    _remove,
    _repeat,
    _insert_word,
    _splice,
)
