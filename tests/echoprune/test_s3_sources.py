"""What URLs of S3 mean, on a real server: one object, a prefix, a glob, a manifest; and what changed since."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from echoprune.errors import ConfigError, MediaError
from echoprune.probe import probe_header
from echoprune.questions import read_questions
from echoprune.s3_client import s3_client
from echoprune.s3_options import S3Options, current_s3, s3_place
from echoprune.s3_sources import look_up
from echoprune.sources import Source, list_sources
from echoprune.storage import Storage
from tests.clips import Clip, even, write

KEYS = (
    "a b.mp4",
    "sub/c.MKV",
    "sub/deep/d.webm",
    "sub/note.txt",
    ".hidden.mp4",
    "sub/.x/e.mp4",
    "[1] ümläut.mp4",
    "raw.dat",
    "[2020] a/f+%20#.mp4",
)


@pytest.fixture
def archive(s3_url: str) -> str:
    """Objects named as KEYS, each of as many bytes as its key is long."""
    for key in KEYS:
        s3_client(current_s3()).write(s3_place(f"{s3_url}/{key}"), bytes(len(key)))
    return s3_url


def names(archive: str, found: Sequence[Source]) -> list[str]:
    return [source.uri.removeprefix(f"{archive}/") for source in found]


def test_a_prefix_holds_the_videos_below_it(archive: str) -> None:
    videos = ["[1] ümläut.mp4", "[2020] a/f+%20#.mp4", "a b.mp4", "sub/c.MKV", "sub/deep/d.webm"]
    for url in (archive, f"{archive}/"):
        found = list_sources([url])
        assert names(archive, found) == videos
        assert all(
            source.size_bytes == len(name) and source.etag for source, name in zip(found, videos, strict=True)
        )
    assert names(archive, list_sources([f"{archive}/sub"])) == videos[3:]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.mp4", ["[1] ümläut.mp4", "a b.mp4"]),
        ("sub/*", ["sub/c.MKV", "sub/deep/d.webm"]),
        ("s?b", ["sub/c.MKV", "sub/deep/d.webm"]),
        ("s*/d[e]ep/", ["sub/deep/d.webm"]),
        ("sub/.x/*", ["sub/.x/e.mp4"]),
        ("s*/*/*.mp4", []),
        ("[2020] a/", ["[2020] a/f+%20#.mp4"]),
        ("[2020] a", ["[2020] a/f+%20#.mp4"]),
        ("**/*.webm", ["sub/deep/d.webm"]),
        ("**", ["[1] ümläut.mp4", "[2020] a/f+%20#.mp4", "a b.mp4", "sub/c.MKV", "sub/deep/d.webm"]),
        ("raw.*", []),
        ("r?w.dat", ["raw.dat"]),
        ("[ab] b.mp4", ["a b.mp4"]),
        ("[!a] b.mp4", []),
        # The name of an object, as it is, goes before what it means as a glob.
        ("[1] ümläut.mp4", ["[1] ümläut.mp4"]),
        ("sub/note.txt.*", []),
    ],
)
def test_a_glob_means_what_it_means_locally(
    archive: str, tmp_path: Path, glob: str, expected: list[str]
) -> None:
    for key in KEYS:
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(len(key)))
    for base in (archive, str(tmp_path)):
        if expected:
            assert names(base, list_sources([f"{base}/{glob}"])) == expected
            continue
        with pytest.raises(ConfigError, match="holds no video"):
            list_sources([f"{base}/{glob}"])


def test_an_object_of_the_name_of_a_folder(archive: str) -> None:
    storage = Storage(archive)
    below = names(archive, list_sources([f"{archive}/sub"]))
    # What some tools put there to mark a folder, with and without a slash at the end.
    for marker in ("sub", "sub/"):
        storage._files.write(marker, b"", before=None)
        assert names(archive, list_sources([f"{archive}/sub"])) == below
    storage.write_bytes("sub", b"a file")
    with pytest.raises(ConfigError, match="is an object, and 2 videos lie below it"):
        list_sources([f"{archive}/sub"])
    assert names(archive, list_sources([f"{archive}/sub/"])) == below


def test_lists_of_more_than_one_page(s3_url: str, rclone_endpoint: str) -> None:
    client, odd = s3_client(current_s3()), "ä +%20#?&='"
    place = s3_place(s3_url)
    client._at_once(
        lambda each: client.write(each, b"x"),
        [place._replace(key=f"{place.key}/{odd}/{i:04}.mp4") for i in range(1100)],
    )
    expected = [f"{s3_url}/{odd}/{i:04}.mp4" for i in range(1100)]
    assert [source.uri for source in list_sources([f"{s3_url}/"])] == expected
    assert len(Storage(s3_url).names()) == 1100
    served = Storage(
        f"s3://bucket/pages {uuid.uuid4().hex}", s3=S3Options(endpoint=rclone_endpoint, patience_s=30)
    )
    served._files.write(f"{odd}/one.mp4", b"x", before=None)
    assert served.names() == [f"{odd}/one.mp4"]


def test_one_object_of_any_suffix_and_one_that_is_missing(archive: str) -> None:
    found = list_sources([f"{archive}/raw.dat", f"{archive}/gone.mp4"])
    assert found[0] == Source(f"{archive}/gone.mp4")
    assert found[1].size_bytes == 7 and found[1].etag
    for url, says in ((f"{archive}/gone", "holds no video"), ("s3://no-such-bucket-here/x/", "cannot list")):
        with pytest.raises(ConfigError, match=says):
            list_sources([url])


def test_a_manifest_in_s3_and_one_that_names_s3(archive: str, tmp_path: Path) -> None:
    storage = Storage(archive)
    storage.write_bytes("list.txt", f"./a b.mp4\nsub/../sub/c.MKV\n{archive}/gone.mp4\n".encode())
    found = {source.uri: source for source in list_sources([f"{archive}/list.txt"])}
    assert sorted(names(archive, list(found.values()))) == ["a b.mp4", "gone.mp4", "sub/c.MKV"]
    assert found[f"{archive}/a b.mp4"].size_bytes == 7 and found[f"{archive}/a b.mp4"].etag
    assert found[f"{archive}/gone.mp4"].size_bytes is None
    # What a manifest says of sizes and etags is not looked up.
    (tmp_path / "list.csv").write_text(f"uri,size_bytes,etag\n{archive}/a b.mp4,5,abc\n{archive}/raw.dat,,\n")
    listed = list_sources([tmp_path / "list.csv"])
    assert listed[0] == Source(f"{archive}/a b.mp4", 5, "abc")
    assert listed[1].size_bytes == 7 and listed[1].etag


def test_questions_in_s3_are_those_of_a_local_file(s3_url: str, tmp_path: Path) -> None:
    for name, text in (
        ("q.jsonl", '{"question_id": "1", "video": "a.mp4", "question": "what?", "more": 3}\n'),
        ("q.csv", 'question_id,video,question\r\n1,a.mp4,"one\r\ntwo"\r\n'),
    ):
        (tmp_path / name).write_bytes(text.encode())
        Storage(s3_url).write_bytes(name, text.encode())
        assert read_questions(f"{s3_url}/{name}") == read_questions(str(tmp_path / name))
    with pytest.raises(ConfigError, match="cannot read questions s3://"):
        read_questions(f"{s3_url}/gone.jsonl")


def test_headers_are_read_without_fetching_the_video(s3_url: str, tmp_path: Path) -> None:
    path = write(Clip("clip.mp4", even(100)), tmp_path)
    Storage(s3_url).write_bytes("clip.mp4", path.read_bytes())
    assert probe_header(f"{s3_url}/clip.mp4") == probe_header(str(path))
    Storage(s3_url).write_bytes("empty.mp4", b"")
    for name, kind in (("gone.mp4", "missing"), ("empty.mp4", "empty")):
        with pytest.raises(MediaError) as caught:
            probe_header(f"{s3_url}/{name}")
        assert caught.value.kind == kind


def test_looking_up_keeps_the_order(archive: str) -> None:
    urls = [f"{archive}/{key}" for key in (*KEYS, "gone")]
    assert [size for size, _ in look_up(urls)] == [*map(len, KEYS), None]
