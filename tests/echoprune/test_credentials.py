from __future__ import annotations

import pytest

from echoprune.credentials import masked, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.mp4?X-Amz-Signature=s#x", "https://host/a.mp4"),
        ("https://user:pw@host:9000/a b.mp4", "https://host:9000/a b.mp4"),
        ("ftp://user:p@ss@host", "ftp://host"),
        ("https://host?sig=1", "https://host"),
        ("s3://bucket/what?.mp4", "s3://bucket/what?.mp4"),
        ("file:///videos/*?.mp4", "file:///videos/*?.mp4"),
        ("/videos/a@b?.mp4", "/videos/a@b?.mp4"),
        ("a: b", "a: b"),
        ("", ""),
    ],
)
def test_what_of_a_url_may_be_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_urls_in_a_sentence() -> None:
    text = "cannot reach 'https://u:p@h/k?sig=1' nor s3://b/k?.mp4; is http://h:1 up? (what?)"
    assert masked(text) == "cannot reach 'https://h/k' nor s3://b/k?.mp4; is http://h:1 up? (what?)"
