"""Objects as files: read here and there, by Parquet too, and what is said when S3 cannot be reached."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.backoff import Backoff
from echoprune.errors import StoreError, StoreUnavailableError
from echoprune.object_files import AHEAD_BYTES, TAIL_BYTES, ObjectReader
from echoprune.s3_client import S3Client, s3_client
from echoprune.s3_options import S3Options, current_s3, s3_place
from echoprune.storage import Storage
from tests.s3_servers import FaultProxy, free_port


@pytest.mark.parametrize("size", [0, 1, TAIL_BYTES, TAIL_BYTES + 1, 3 * AHEAD_BYTES + 17])
def test_it_reads_as_a_file_does(s3_url: str, size: int) -> None:
    data = os.urandom(size)
    Storage(s3_url).write_bytes("x", data)
    reader = ObjectReader(s3_client(current_s3()), s3_place(f"{s3_url}/x"))
    plain = io.BytesIO(data)
    draw = random.Random(size)
    for _ in range(60):
        where, whence = draw.choice(
            [(draw.randint(0, size + 5), io.SEEK_SET), (-draw.randint(0, size), io.SEEK_END), (0, io.SEEK_CUR)]
        )  # fmt: skip
        assert reader.seek(where, whence) == plain.seek(where, whence) and reader.tell() == plain.tell()
        count = draw.choice([0, 1, 10, 5000, AHEAD_BYTES, -1])
        assert reader.read(count) == plain.read(count)
    reader.seek(0)
    buffer = memoryview(bytearray(7))
    assert reader.readinto(buffer) == min(7, size) and bytes(buffer[: min(7, size)]) == data[:7]


def test_parquet_asks_for_what_it_needs(s3_url: str, tmp_path: Path, moto_endpoint: str) -> None:
    table = pa.table({"small": range(40_000), "large": [os.urandom(100) for _ in range(40_000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10_000, compression="none")
    whole = (tmp_path / "x.parquet").stat().st_size
    Storage(s3_url).put_file(tmp_path / "x.parquet", "x.parquet")
    with FaultProxy(moto_endpoint).running() as proxy:
        through = Storage(s3_url, s3=S3Options(endpoint=proxy.endpoint))
        with through.open_input("x.parquet") as source:
            assert proxy.requests == 1
            parquet = pq.ParquetFile(source)
            assert parquet.read_row_group(2, columns=["small"]).equals(
                table.select(["small"]).slice(20_000, 10_000)
            )
        # The end, then the column of one row group with what lies beside it.
        assert proxy.requests <= 4 and whole > AHEAD_BYTES * 3 + TAIL_BYTES
        with through.open_input("x.parquet") as source:
            assert pq.ParquetFile(source).read().equals(table)


def test_an_object_that_was_replaced_is_no_mixture_of_both(s3_url: str) -> None:
    storage = Storage(s3_url)
    storage.write_bytes("x", bytes(10 * TAIL_BYTES))
    with storage.open_input("x") as source:
        assert source.read(10) == bytes(10)
        storage.write_bytes("x", os.urandom(10 * TAIL_BYTES))
        source.seek(6 * TAIL_BYTES)
        with pytest.raises(StoreError, match="replaced while it was read"):
            source.read(10)


def test_out_of_reach_is_said_to_be_that_and_not_damage(s3_url: str) -> None:
    storage = Storage(s3_url, s3=S3Options(endpoint=f"http://127.0.0.1:{free_port()}", patience_s=0.3))
    for act in (
        lambda: storage.exists("x"), storage.names, lambda: storage.read_bytes("x"),
        lambda: storage.write_bytes("x", b""), lambda: storage.open_input("x"), lambda: storage.remove("x"),
        lambda: storage.create_exclusive("x", b""),
    ):  # fmt: skip
        with pytest.raises(StoreUnavailableError, match="run the same command again"):
            act()


def test_losing_the_service_in_the_middle_of_a_file(s3_url: str, moto_endpoint: str) -> None:
    Storage(s3_url).write_bytes("x", bytes(10 * TAIL_BYTES))
    with FaultProxy(moto_endpoint).running() as proxy:
        client = S3Client(S3Options(endpoint=proxy.endpoint), Backoff(patience_s=0.3))
        source = pa.PythonFile(ObjectReader(client, s3_place(f"{s3_url}/x")), mode="r")
        assert source.size() == 10 * TAIL_BYTES
        proxy.down = True
        # Through pyarrow, which must not make another error of it.
        with pytest.raises(StoreUnavailableError):
            source.read(10)
