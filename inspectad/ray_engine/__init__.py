"""``--engine ray``: a scan, or a benchmark, on all machines of a Ray cluster. Needs the extra [ray].

A scan is one Ray Data job: `listing` yields names in chunks, `actor` inspects a chunk (in `child`, a process of its
own), `sink` writes shards of rows. `scan` puts it together, `session` starts or finds Ray, `place` is a folder or a
URL, `shards` are the files of rows. Only `session`, `scan`, `actor`, `sink` and `cells` import ray.
"""
