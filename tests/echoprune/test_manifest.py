"""Lists of videos: what they may hold, and one line for what they may not."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.errors import ConfigError
from echoprune.manifest import read_manifest


def made(folder: Path, name: str, content: bytes | dict[str, object]) -> str:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table(content), path)
    return str(path)


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(name: str, tmp_path: Path) -> None:
    lines = {"list.txt": "a.mp4\r\n", "list.csv": "uri\r\na.mp4\r\n", "list.jsonl": '{"uri": "a.mp4"}\r\n'}
    path = made(tmp_path, name, b"\xef\xbb\xbf" + lines[name].encode())
    assert read_manifest(path) == [("a.mp4", None, None)]


def test_names_stay_as_they_are_written(tmp_path: Path) -> None:
    assert read_manifest(made(tmp_path, "n.csv", b"uri,etag,size_bytes\n007,1e3,12\n1e3,,\n")) == [
        ("007", 12, "1e3"),
        ("1e3", None, ""),
    ]
    assert read_manifest(made(tmp_path, "n.txt", "a\u2028b.mp4\n# no\n".encode())) == [
        ("a\u2028b.mp4", None, None)
    ]
    table = {"uri": pa.array(["x", "y"]).dictionary_encode(), "size_bytes": pa.array([1.0, None])}
    assert read_manifest(made(tmp_path, "n.parquet", table)) == [("x", 1, None), ("y", None, None)]


def test_rows_without_a_uri_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = made(tmp_path, "n.parquet", {"uri": ["x", None, ""]})
    with caplog.at_level(logging.WARNING):
        assert read_manifest(path) == [("x", None, None)]
    assert f"2 rows of manifest {path} have no uri" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two.csv", b"uri,uri\na,b\n", "it has the columns uri, uri: it needs one column uri"),
        (
            "two.parquet",
            {"uri": ["a"], "size_bytes": ["x"]},
            "its column size_bytes holds string, not numbers",
        ),
        ("none.csv", b"path\nx\n", "it has the columns path: it needs one column uri"),
        ("number.jsonl", b'{"uri": 5}\n', "its column uri holds int64, not text"),
        ("struct.jsonl", b'{"uri": {"a": 1}}\n', "its column uri holds struct<a: int64>, not text"),
        ("list.parquet", {"uri": [["a"]]}, "its column uri holds list<"),
        ("bytes.parquet", {"uri": [b"caf\xe9.mp4"]}, "its column uri holds binary, not text"),
        ("zero.txt", b"a\0b.mp4\n", "holds a zero byte"),
        ("zero.jsonl", json.dumps({"uri": "a\0b"}).encode(), "holds a zero byte"),
        ("negative.csv", b"uri,size_bytes\na,-1\n", "size_bytes of a is -1"),
        ("huge.csv", b"uri,size_bytes\na,9000000000000000000\n", "size_bytes of a is 9000000000000000000"),
        ("larger.csv", b"uri,size_bytes\na,99999999999999999999999\n", "cannot read manifest"),
        ("half.csv", b"uri,size_bytes\na,1.5\n", "cannot read manifest"),
        ("latin.txt", b"caf\xe9.mp4\n", "cannot read manifest"),
        ("latin.csv", b"uri\ncaf\xe9.mp4\n", "cannot read manifest"),
        ("half.jsonl", b'{"uri": "a\\udce9.mp4"}\n', "cannot read manifest"),
        ("text.parquet", b"no table", "cannot read manifest"),
    ],
)
def test_anything_else_is_one_line(
    name: str, content: bytes | dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        read_manifest(made(tmp_path, name, content))
    assert message in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)
