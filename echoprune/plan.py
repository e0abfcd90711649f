"""The plan: the archive's frozen list of videos, cut into shards.

A shard is a list of whole videos, of about equal cost, with an id that is a hash of its content. The plan only
grows: videos that were not in it become a new part; rows of forgotten ones (forgotten.py) are passed over. Which videos
there are is found in sources.py; which shards are done is said by receipts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from echoprune.cycles import no_search_for_cycles
from echoprune.errors import StoreError
from echoprune.forgotten import read_forgotten
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
    "plan_problems",
    "video_id",
]

_LOG = logging.getLogger(__name__)
_FOLDER = "plan"


@dataclass(frozen=True)
class Shard:
    """Whole videos that are indexed and committed together. `shard_id`: 16 hex digits of its uris and sizes.

    `redo`: ids of the videos to be indexed again of a shard that is committed; the others are copied. Empty: it is not
    committed yet, and all are indexed. `receipt`: the name of the receipt of a committed one.
    """

    shard_id: str
    sources: tuple[Source, ...] = field(repr=False)
    redo: frozenset[str] = field(default=frozenset(), repr=False)
    receipt: str = ""

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The ids of its videos, in order."""
        return tuple(source.video_id for source in self.sources)

    @property
    def size_bytes(self) -> int:
        """The bytes of its videos as far as they are known."""
        return sum(source.size_bytes or 0 for source in self.sources)

    @property
    def todo(self) -> tuple[Source, ...]:
        """Those of its videos that are to be indexed."""
        return (
            tuple(each for each in self.sources if each.video_id in self.redo) if self.redo else self.sources
        )


@dataclass(frozen=True)
class Plan:
    """All parts of a store's plan as one table of `plan_schema`, shard after shard, in the order of planning.

    `forgotten`: the rows of the parts that count no longer, and are not in `table`.
    """

    table: pa.Table = field(repr=False)
    forgotten: pa.Table = field(repr=False, default_factory=lambda: plan_schema().empty_table())

    def __len__(self) -> int:
        """How many videos."""
        return int(self.table.num_rows)

    @property
    def shard_ids(self) -> list[str]:
        """The ids of its shards, in order."""
        ids: list[str] = self.table["shard_id"].take(pa.array(self._starts)).to_pylist() if len(self) else []
        return ids

    @no_search_for_cycles()
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
            parts.append(_read(storage, name))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"plan part {storage.url_of(name)} is damaged ({reason}): use another --store"
            ) from error
    table = pa.concat_tables(parts) if parts else plan_schema().empty_table()
    tombstones = read_forgotten(storage)
    if not tombstones:
        return Plan(table)
    keys = pc.binary_join_element_wise(table["shard_id"], table["video_id"], "/")
    gone = pc.is_in(keys, value_set=pa.array(["/".join(each) for each in tombstones], pa.string()))
    return Plan(table.filter(pc.invert(gone)), table.filter(gone))


@no_search_for_cycles()
def extend_plan(
    storage: Storage,
    sources: Sequence[Source],
    *,
    shard_bytes: int,
    shard_videos: int,
    min_shards: int = 1,
    bring_back: bool = False,
) -> list[Shard]:
    """The shards of those sources that the plan does not hold yet, written as its next part; [] if there are none.

    Cut as by `make_shards`. Parts are never rewritten. A source whose size or etag differs from the plan is not indexed again (its
    id is its uri); how many there are is logged. Neither is a forgotten one, unless `bring_back` says so. Raises StoreError
    if another process planned meanwhile.
    """
    plan = load_plan(storage)
    planned = plan.table
    columns = (planned[name].to_pylist() for name in ("uri", "size_bytes", "etag"))
    before = {uri: (size, etag) for uri, size, etag in zip(*columns, strict=True)}
    changed = sum(before.get(s.uri, s[1:]) != s[1:] for s in sources)
    if changed:
        _LOG.warning(
            "%d files changed since they were planned and are not indexed again: `echoprune status --sources` names them",
            changed,
        )
    fresh = {source.uri: source for source in sources if source.uri not in before}
    forgotten = set(plan.forgotten["uri"].to_pylist()) & set(fresh)
    if forgotten and not bring_back:
        _LOG.warning(
            "%d videos were forgotten and are not indexed again: --bring-back does so", len(forgotten)
        )
        fresh = {uri: source for uri, source in fresh.items() if uri not in forgotten}
    shards = make_shards(
        list(fresh.values()), shard_bytes=shard_bytes, shard_videos=shard_videos, min_shards=min_shards
    )
    if not shards:
        return []
    name = _part(len(_parts(storage)))
    # Videos that are brought back may make up a shard that there was: its id has a receipt and tombstones.
    used = set(plan.forgotten["shard_id"].to_pylist())
    shards = [
        replace(shard, shard_id=_shard_id(shard.sources, salt=name)) if shard.shard_id in used else shard
        for shard in shards
    ]
    sink = pa.BufferOutputStream()
    # Without statistics: nobody reads them, and damage to them would be seen by nobody.
    pq.write_table(_table(shards), sink, compression="zstd", write_page_checksum=True, write_statistics=False)
    if not storage.create_exclusive(name, sink.getvalue().to_pybytes()):
        raise StoreError(f"{storage.url_of(name)} was written by another run: let it finish, then run again")
    return shards


def pending(plan: Plan, receipts: Collection[str]) -> list[Shard]:
    """The shards without a receipt, in the order of the plan. `receipts`: shard ids, or what is keyed by them."""
    return plan.shards(skip=receipts)


def plan_problems(storage: Storage) -> Iterator[str]:
    """A line for each part that is missing, and for each shard whose videos are not those that its id was made of.

    Raises StoreError for a part that is damaged.
    """
    names = _parts(storage)
    missing = [part for part in map(_part, range(len(names))) if part not in names]
    yield from (f"{part} is missing, and other parts of the plan are there: restore it" for part in missing)
    for name in names:
        table = _read(storage, name)
        ids = iter(table["video_id"].to_pylist())
        for shard in Plan(table).shards():
            made_of = [_shard_id(shard.sources, salt=salt) for salt in ("", name)]
            if [next(ids) for _ in shard.sources] != list(shard.video_ids) or shard.shard_id not in made_of:
                yield f"{name}: shard {shard.shard_id} has other videos than it was planned with: restore that part"


def _read(storage: Storage, name: str) -> pa.Table:
    with storage.open_input(name) as file:
        table = pq.ParquetFile(file, page_checksum_verification=True).read()
    if not table.schema.equals(plan_schema(), check_metadata=True):
        raise pa.ArrowInvalid("its columns or metadata are not those of a plan")
    return table


def _part(number: int) -> str:
    return f"{_FOLDER}/part-{number:04d}.parquet"


def _parts(storage: Storage) -> list[str]:
    return [name for name in storage.names(_FOLDER) if name.endswith(".parquet")]


def _shard(members: Iterable[Source]) -> Shard:
    sources = tuple(members)
    return Shard(_shard_id(sources), sources)


def _shard_id(sources: Sequence[Source], *, salt: str = "") -> str:
    text = json.dumps([[source.uri, source.size_bytes, source.etag] for source in sources])
    return hashlib.sha256((text + salt).encode()).hexdigest()[:16]


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
