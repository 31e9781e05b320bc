"""Sets of very many names: against Python's own set, and their memory."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectad import names
from inspectad.names import NameSet


@settings(deadline=None)
@given(st.lists(st.text(max_size=3), max_size=200), st.lists(st.text(max_size=3)), st.integers(1, 9))
def test_a_set_of_names_knows_what_a_set_knows(known: list[str], asked: list[str], fresh: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "_FRESH", fresh)
        found = NameSet(known)
    assert len(found) == len(set(known))
    assert [name in found for name in known + asked] == [name in set(known) for name in known + asked]
    assert found == set(known)
    assert found != {*known, "another name"}


def test_many_names_take_few_bytes() -> None:
    count = 2 * names._FRESH
    tracemalloc.start()
    try:
        found = NameSet(f"2026-11-26/line_3/{i:08}.png" for i in range(count))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == count
    assert held < 10 * count


def test_two_sets_of_the_same_names_are_equal_however_they_were_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [f"{i}.png" for i in range(40)]
    plain = NameSet(wanted)
    monkeypatch.setattr("inspectad.names._FRESH", 7)
    assert NameSet(reversed(wanted)) == plain
    assert NameSet(wanted[1:]) != plain
    assert NameSet([*wanted[1:], "other.png"]) != plain
