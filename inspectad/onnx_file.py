"""A look into an ONNX file before the runtime sees it: its metadata, and whether it is complete by itself. Pure.

A graph that inspectad exports consists of standard operators and holds its own weights. So what ONNX can do beyond that
is refused rather than judged: weights in other files, operators of other domains (among them ``EPContext``, which loads
a compiled engine from a path), functions, subgraphs (a loop need not end) and sparse tensors (some bytes that stand for
gigabytes). Fields are allowed by number (onnx.proto, IR version 13); what is not listed is refused. A line PC has no
package that reads ONNX, and that package takes memory for all of it.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from inspectad.errors import ModelFileError

_MOST_FIELDS: Final = 2_000_000  # in all messages; a model has some thousands, and each takes about 1 us
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf

# Numbers of the fields that may be there, and the kind of message that they hold, None for other values.
_Message = Mapping[int, "str | None"]
_ENTRY: Final[_Message] = dict.fromkeys((1, 2))
_MODEL: Final[_Message] = {**dict.fromkeys((1, 2, 3, 4, 5, 6, 8)), 7: "graph", 14: "entry"}
_GRAPH: Final[_Message] = {**dict.fromkeys((2, 10, 11, 12, 13, 14, 16)), 1: "node", 5: "tensor"}
_NODE: Final[_Message] = {**dict.fromkeys((1, 2, 3, 4, 6, 7, 8, 9)), 5: "attribute"}
_ATTRIBUTE: Final[_Message] = {**dict.fromkeys((1, 2, 3, 4, 7, 8, 9, 13, 20)), 5: "tensor", 10: "tensor"}
_TENSOR: Final[_Message] = dict.fromkeys((1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16))
_KINDS: Final[Mapping[str, _Message]] = {
    "model": _MODEL,
    "graph": _GRAPH,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "tensor": _TENSOR,
    "entry": _ENTRY,
}
_REFUSED: Final = {
    ("model", 20): "training graphs",
    ("model", 25): "functions",
    ("graph", 15): "sparse tensors",
    ("attribute", 6): "subgraphs",
    ("attribute", 11): "subgraphs",
    ("attribute", 22): "sparse tensors",
    ("attribute", 23): "sparse tensors",
    ("tensor", 13): "weights in other files",
}
_STANDARD_DOMAINS: Final = (b"", b"ai.onnx")


def read_metadata(data: bytes) -> dict[str, str]:
    """The ``metadata_props`` of a serialised ONNX model, of which no more is looked at.

    Raises: ModelFileError when it is no ONNX model.
    """
    found: dict[str, str] = {}
    walk = _Walk(data)
    for number, start, end in walk.fields(0, len(data)):
        if number == 14 and end >= 0:
            entry = {n: data[a:b] for n, a, b in walk.fields(start, end) if b >= 0}
            try:
                found[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
            except UnicodeDecodeError as error:
                raise _damaged("its metadata is no text") from error
    return found


def check_self_contained(data: bytes) -> None:
    """Refuse a model that could read other files, run other code or grow when it is loaded.

    Raises: ModelFileError.
    """
    _check(_Walk(data), "model", 0, len(data))


def _check(walk: "_Walk", kind: str, start: int, end: int) -> None:
    """One message and those in it: five levels at most, as none of the allowed ones holds one of its own kind."""
    allowed = _KINDS[kind]
    for number, first, last in walk.fields(start, end):
        if number not in allowed:
            what = _REFUSED.get((kind, number), f"field {number} of a {kind}")
            raise ModelFileError(f"its graph has {what}, which no model of inspectad has; refused")
        if kind == "node" and number == 7 and walk.data[first : max(last, first)] not in _STANDARD_DOMAINS:
            domain = walk.data[first : max(last, first)][:40].decode(errors="replace")
            raise ModelFileError(f"its graph has operators of {domain}, which no model of inspectad has; refused")
        if kind == "tensor" and number == 14 and first:  # the location: 0 is the file itself
            raise ModelFileError("its graph has weights in other files, which no model of inspectad has; refused")
        if (inner := allowed[number]) is not None:
            if last < 0:
                raise _damaged("a message that is none")
            _check(walk, inner, first, last)


class _Walk:
    """Over the fields of protobuf messages, without copying what is in them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = _MOST_FIELDS

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, start and end of each field between two places; of a number its value, and -1 for the end.

        Raises: ModelFileError when this is no protobuf.
        """
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise _damaged(f"more than {_MOST_FIELDS} parts")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, value, -1
                continue
            if wire == _BYTES:
                length, at = self._varint(at, end)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise _damaged("no protobuf")
            if length > end - at or not number:
                raise _damaged("cut short")
            yield number, at, at + length
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _damaged("cut short")
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _damaged("no protobuf")


def _damaged(why: str) -> ModelFileError:
    return ModelFileError(f"not an ONNX model, or a damaged one ({why}); copy it again or train again")
