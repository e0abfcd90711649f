from __future__ import annotations

from pathlib import Path

import pytest

from echoprune.errors import ConfigError
from echoprune.s3_options import S3Options, S3Place, current_s3, is_s3, s3_place, use_s3
from echoprune.sources import list_sources
from echoprune.storage import Storage
from pipelines.job_config import require_store_place


def test_a_url_is_a_bucket_and_a_key() -> None:
    assert s3_place("s3://bucket/a b/ü.mp4") == S3Place("bucket", "a b/ü.mp4")
    assert s3_place("s3://bucket") == s3_place("s3://bucket/") == S3Place("bucket", "")
    assert S3Place("bucket", "a/b").url == "s3://bucket/a/b" and S3Place("bucket", "").url == "s3://bucket"
    assert is_s3("s3://x") and not is_s3("x") and not is_s3("file:///s3") and not is_s3("https://s3.x")


@pytest.mark.parametrize("url", ["s3://", "s3:///key", "s3://key:hunter2@bucket/x", "s3://hunter2@bucket/x"])
def test_a_url_that_is_none_is_refused_without_showing_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        s3_place(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    ["https://user:hunter2@host", "https://hunter2@host", "host:9000", "ftp://host", "", "https://"],
)
def test_an_endpoint_that_cannot_be_used_is_refused_without_showing_secrets(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="--s3-endpoint") as caught:
        S3Options(endpoint=endpoint)
    assert "hunter2" not in str(caught.value)


def test_anonymous_goes_with_nothing_that_needs_credentials() -> None:
    for options in ({"profile": "p"}, {"requester_pays": True}):
        with pytest.raises(ConfigError, match="--s3-anon"):
            S3Options(anonymous=True, **options)


def test_the_options_of_the_process() -> None:
    before = current_s3()
    try:
        use_s3(S3Options(endpoint="http://127.0.0.1:1"))
        assert current_s3().endpoint == "http://127.0.0.1:1"
    finally:
        use_s3(before)


@pytest.mark.parametrize("path", ["s3:/bucket/x", "S3://bucket/x", "s3:bucket"])
def test_a_mistyped_scheme_is_no_folder(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (Storage, require_store_place, lambda path: list_sources([f"{path}/clip.mp4"])):
        with pytest.raises(ConfigError, match="write s3://BUCKET/KEY"):
            use(path)
    assert list(tmp_path.iterdir()) == []
