"""Real inputs to begin with: files of the corpus, and texts that our own code writes."""

import json
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target: real inputs (``made-...``, by `fuzz.make_corpus`), and those that once found a bug."""


@cache
def kept(target: str) -> tuple[bytes, ...]:
    """What lies in the corpus of a target."""
    return tuple(path.read_bytes() for path in sorted((CORPUS / target).glob("*")))


def path_lists() -> tuple[bytes, ...]:
    """Lists for ``scan -``, by lines and by zero bytes."""
    return (
        b"a.png\nsub/b.png\r\n\n./c.png",
        b"/etc/passwd\n../../x.png\n..\n.\n/\n//\n",
        b"a\nb.png\0c.png\0\0" + bytes(range(1, 256)),
        "é/漢.png\n\u202e.png\n".encode() + b"\xff\xfe.png\n",
        b"=1+1.png\n-x\n~/.ssh/id\n$HOME\n" + b"x" * 5000,
        b"C:\\windows\\x.png\nC:/x.png\n\\\\host\\share\\y.png\n",
    )


def results() -> tuple[bytes, ...]:
    """Results files as scans leave them: the first byte says which format."""
    from inspectad.records import Box, Inspection, Verdict
    from inspectad.results import CSV_HEADER, format_row

    rows = [
        Inspection(image="a.png", verdict=Verdict.OK, score=0.5, threshold=1.0, severity=0.5, model="0123456789ab"),
        Inspection(image='=b,"\n;.png', verdict=Verdict.NG, score=2, threshold=1, boxes=(Box(1, 2, 3, 4),), model="0"),
        Inspection(image="sub/é.png", verdict=Verdict.UNREADABLE, error="the file is empty (0 bytes)"),
    ]
    csv = b"c" + CSV_HEADER + b"".join(format_row(row, "csv") for row in rows)
    return (csv, b"c", b"j" + b"".join(format_row(row, "jsonl") for row in rows), csv[:-7])


def manifest_words() -> tuple[bytes, ...]:
    """Keys and values that a manifest may have."""
    keys: set[str] = set()
    for text in kept("manifest"):
        keys.update(_keys(json.loads(text)))
    return (
        *(json.dumps(key).encode() for key in sorted(keys)),
        b"null",
        b"1e999",
        b"-1",
        b"{}",
        b"[",
        b"NaN",
        b'""',
        b"1e400",
    )


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in _keys(inner)}
    return set()
