"""Where a job's rows end: Ray Data's write tasks, which write shards instead of one of its own formats.

Its own CSV writer would format numbers and quote names in another way than the local engine, and write in place. What
makes a row come exactly once: a task that is tried again has the same number and the same inputs, so its shard replaces
the one of the attempt before; and a shard appears whole or not at all.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
from ray.data import Datasink

from inspectad.ray_engine.job import Counts
from inspectad.ray_engine.place import Place
from inspectad.ray_engine.shards import FOLDER, ROWS_A_SHARD, encode_shard, shard_name
from inspectad.records import Verdict
from inspectad.scan import MOST_NAMED

if TYPE_CHECKING:
    from ray.data._internal.execution.interfaces import TaskContext
    from ray.data.datasource.datasink import WriteResult


class ShardSink(Datasink[Counts]):  # type: ignore[misc]  # mypy does not look into Ray
    """Writes shards, and counts what is in them.

    Attributes:
        counts: of all of them, when the job is done.
    """

    def __init__(self, output: Place, kind: str, run: str, chunk: int) -> None:
        """Args: chunk: images in a row that comes here (`inspectad.ray_engine.actor.INSPECTED`)."""
        self._output = output
        self._kind = kind
        self._run = run
        self._chunk = chunk
        self.counts = Counts()

    @property
    def min_rows_per_write(self) -> int:
        return -(-ROWS_A_SHARD // self._chunk)

    def write(self, blocks: Iterable[pa.Table], ctx: "TaskContext") -> Counts:
        """Runs on a node. Raises: OutputError."""
        counts, records = Counts(), []
        for row in (row for block in blocks for row in block.to_pylist()):
            records.append(row["records"])
            verdicts = Counter({v.value: row[v.value] for v in Verdict if row[v.value]})
            counts.add(Counts(verdicts, row["distorted"], {row["note"]} - {""}), MOST_NAMED)
        if records:
            name = shard_name(self._run, ctx.task_idx, self._kind)
            (self._output / FOLDER / name).write(encode_shard(records, self._kind))
        return counts

    def on_write_complete(self, write_result: "WriteResult[Counts]") -> None:
        for counts in write_result.write_returns:
            self.counts.add(counts, MOST_NAMED)
