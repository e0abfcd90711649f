"""The plan: the archive's frozen list of videos, cut into shards.

A shard is a list of whole videos, of about equal cost, with an id that is a hash of its content. The plan only
grows: videos that were not in it become a new part. Which videos there are is found in sources.py; which
shards are done is said by receipts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from echoprune.errors import StoreError
from echoprune.schema import plan_schema
from echoprune.sources import Source, content_id, list_sources, video_id
from echoprune.storage import Storage

__all__ = [
    "Plan",
    "Shard",
    "Source",
    "content_id",
    "extend_plan",
    "list_sources",
    "load_plan",
    "make_shards",
    "pending",
    "video_id",
]

_LOG = logging.getLogger(__name__)
_FOLDER = "plan"


@dataclass(frozen=True)
class Shard:
    """Whole videos that are indexed and committed together. `shard_id`: 16 hex digits of its uris and sizes."""

    shard_id: str
    sources: tuple[Source, ...] = field(repr=False)

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The ids of its videos, in order."""
        return tuple(source.video_id for source in self.sources)

    @property
    def size_bytes(self) -> int:
        """The bytes of its videos as far as they are known."""
        return sum(source.size_bytes or 0 for source in self.sources)


@dataclass(frozen=True)
class Plan:
    """All parts of a store's plan as one table of `plan_schema`, shard after shard, in the order of planning."""

    table: pa.Table = field(repr=False)

    def __len__(self) -> int:
        """How many videos."""
        return int(self.table.num_rows)

    @property
    def shard_ids(self) -> list[str]:
        """The ids of its shards, in order."""
        ids: list[str] = self.table["shard_id"].take(pa.array(self._starts)).to_pylist() if len(self) else []
        return ids

    def shards(self, skip: Collection[str] = ()) -> list[Shard]:
        """Its shards in order, without those whose id is in `skip`."""
        stops = [*self._starts[1:].tolist(), len(self)]
        spans = zip(self.shard_ids, self._starts.tolist(), stops, strict=True) if len(self) else iter(())
        return [
            Shard(shard_id, _sources(self.table.slice(start, stop - start)))
            for shard_id, start, stop in spans
            if shard_id not in skip
        ]

    @property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first row of each shard; the rows of a shard follow one another."""
        codes = (
            self.table["shard_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        )
        return np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)


def make_shards(
    sources: Sequence[Source], *, shard_bytes: int, shard_videos: int, min_shards: int = 1
) -> list[Shard]:
    """Shards of about `shard_bytes` and at most `shard_videos` whole videos, longest videos first.

    The cost of a video is its size; one of unknown size counts as the median. Sorted by cost, then uri, the
    list is cut where a shard comes closest to its share, total / max(min_shards, ceil(total / shard_bytes)). Videos
    of like length share a shard, so that long ones start first and the last shards are quick. The same sources in
    any order give the same shards; a video larger than the share has its own. `min_shards`: about how many shards
    there should be, as far as there are videos: one encoder works on a shard, and four for each even out the end.
    """
    if min(shard_bytes, shard_videos, min_shards) < 1:
        raise ValueError(
            f"shard_bytes, shard_videos and min_shards must be >= 1, got {shard_bytes}, {shard_videos} and {min_shards}"
        )
    if not sources:
        return []
    known = np.array(
        [source.size_bytes for source in sources if source.size_bytes is not None], dtype=np.int64
    )
    # At least 1 byte, so that empty files still spread by number.
    unknown = int(np.median(known)) if len(known) else 1
    costs = np.maximum(1, [unknown if source.size_bytes is None else source.size_bytes for source in sources])
    by_uri = sorted(range(len(sources)), key=lambda i: sources[i].uri)
    order = np.array(by_uri)[np.argsort(-costs[by_uri], kind="stable")].tolist()
    total = int(costs.sum())
    share = total / max(min_shards, -(-total // shard_bytes))
    shards: list[Shard] = []
    members: list[Source] = []
    filled = 0
    for i in order:
        cost = int(costs[i])
        if members and (len(members) == shard_videos or filled + cost / 2 > share):
            shards.append(_shard(members))
            members, filled = [], 0
        members.append(sources[i])
        filled += cost
    return [*shards, _shard(members)]


def load_plan(storage: Storage) -> Plan:
    """The plan of a store; empty if nothing was planned yet. Raises StoreError for a part that is damaged."""
    parts = []
    for name in _parts(storage):
        try:
            with storage.open_input(name) as file:
                parts.append(pq.read_table(file, schema=plan_schema()))
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"plan part {storage.url_of(name)} is damaged ({reason}): use another --store"
            ) from error
    return Plan(pa.concat_tables(parts) if parts else plan_schema().empty_table())


def extend_plan(
    storage: Storage, sources: Sequence[Source], *, shard_bytes: int, shard_videos: int, min_shards: int = 1
) -> list[Shard]:
    """The shards of those sources that the plan does not hold yet, written as its next part; [] if there are none.

    Cut as by `make_shards`. Parts are never rewritten. A source whose size or etag differs from the plan is not indexed again (its
    id is its uri); how many there are is logged. Raises StoreError if another process planned meanwhile.
    """
    planned = load_plan(storage).table
    columns = (planned[name].to_pylist() for name in ("uri", "size_bytes", "etag"))
    before = {uri: (size, etag) for uri, size, etag in zip(*columns, strict=True)}
    changed = sum(before.get(s.uri, s[1:]) != s[1:] for s in sources)
    if changed:
        _LOG.warning("%d files changed since they were planned and are not indexed again", changed)
    fresh = {source.uri: source for source in sources if source.uri not in before}
    shards = make_shards(
        list(fresh.values()), shard_bytes=shard_bytes, shard_videos=shard_videos, min_shards=min_shards
    )
    if not shards:
        return []
    name = f"{_FOLDER}/part-{len(_parts(storage)):04d}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(_table(shards), sink, compression="zstd")
    if not storage.create_exclusive(name, sink.getvalue().to_pybytes()):
        raise StoreError(f"{storage.url_of(name)} was written by another run: let it finish, then run again")
    return shards


def pending(plan: Plan, receipts: Collection[str]) -> list[Shard]:
    """The shards without a receipt, in the order of the plan. `receipts`: shard ids, or what is keyed by them."""
    return plan.shards(skip=receipts)


def _parts(storage: Storage) -> list[str]:
    return [name for name in storage.names(_FOLDER) if name.endswith(".parquet")]


def _shard(members: Iterable[Source]) -> Shard:
    sources = tuple(members)
    text = json.dumps([[source.uri, source.size_bytes, source.etag] for source in sources])
    return Shard(hashlib.sha256(text.encode()).hexdigest()[:16], sources)


def _sources(rows: pa.Table) -> tuple[Source, ...]:
    columns = (rows[name].to_pylist() for name in ("uri", "size_bytes", "etag"))
    return tuple(Source(*values) for values in zip(*columns, strict=True))


def _table(shards: Sequence[Shard]) -> pa.Table:
    lengths = np.array([len(shard.sources) for shard in shards])
    ids = pa.array([shard.shard_id for shard in shards]).take(
        pa.array(np.repeat(np.arange(len(shards)), lengths))
    )
    uris, sizes, etags = zip(*chain.from_iterable(shard.sources for shard in shards), strict=True)
    columns = [ids, [video_id(uri) for uri in uris], uris, sizes, etags]
    schema = plan_schema()
    arrays = [
        pa.array(column, type=column_field.type) for column, column_field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)
