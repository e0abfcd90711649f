from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from echoprune.errors import StoreError, StoreMismatchError
from echoprune.schema import METADATA_KEY, TABLES, StoreSettings, plan_schema, table_schema, token_rows_dtype
from tests.stores import settings

DOCS = Path(__file__).parents[2] / "docs" / "store.md"


def test_settings_survive_json() -> None:
    made = settings(window=3, fps=None, frames=64, deepstack_layers=3)
    assert StoreSettings.from_json(made.to_json()) == made
    assert settings(anchor_every_s=10) == settings(anchor_every_s=10.0)
    assert settings(anchor_every_s=10).digest == settings(anchor_every_s=10.0).digest


def test_the_digest_follows_every_field() -> None:
    changes = {"dim": 25, "fps": "1", "keep": "all", "dtype": "bf16", "window": 3, "temperature": 0.1}
    digests = {settings(**{name: value}).digest for name, value in changes.items()} | {settings().digest}
    assert len(digests) == len(changes) + 1


def test_a_store_that_names_no_tower_has_the_plain_one() -> None:
    """Stores of before there was another keep their digest, which is in all of their files."""
    assert "tower" not in json.loads(settings().to_json())
    fast = settings(tower="fast")
    assert StoreSettings.from_json(fast.to_json()) == fast
    assert fast.digest != settings().digest == settings(tower="plain").digest
    with pytest.raises(StoreMismatchError, match="tower = 'plain', this run has 'fast': give --tower plain"):
        settings().require_same(fast)


def test_a_store_that_names_no_compression_has_zstd() -> None:
    assert "compression" not in json.loads(settings().to_json())
    plain = settings(compression="none")
    assert StoreSettings.from_json(plain.to_json()) == plain
    assert plain.digest != settings().digest
    with pytest.raises(
        StoreMismatchError, match="compression = 'none', this run has 'zstd': give --compression none"
    ):
        plain.require_same(settings())
    with pytest.raises(ValueError, match="compression must be one of zstd, none, got 'gzip'"):
        settings(compression="gzip")


def test_a_store_that_names_no_rank_was_ranked_by_novelty() -> None:
    assert "rank_by" not in json.loads(settings().to_json())
    changed = settings(rank_by="change")
    assert StoreSettings.from_json(changed.to_json()) == changed
    assert changed.digest != settings().digest == settings(rank_by="novelty").digest
    with pytest.raises(
        StoreMismatchError, match="rank_by = 'novelty', this run has 'change': give --rank-by novelty"
    ):
        settings().require_same(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("keep"), "lacks field keep"),
        (lambda v: v.update(extra=1), "unknown field extra"),
        (lambda v: v.update(schema_version=2), "schema_version 2"),
        (lambda v: v.pop("schema_version"), "schema_version None"),
        (lambda v: v.update(dim="24"), "dim must be int, got '24'"),
        (lambda v: v.update(dim=True), "dim must be int"),
        (lambda v: v.update(dtype="fp8"), "fp8"),
        (lambda v: v.update(rank_by="echo"), "rank_by must be one of change, novelty, got 'echo'"),
    ],
)
def test_an_odd_store_json_is_named(change: object, message: str) -> None:
    values = json.loads(settings().to_json())
    change(values)  # type: ignore[operator]
    with pytest.raises(StoreError, match=message):
        StoreSettings.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_store_json_that_is_none_is_a_store_error(text: str) -> None:
    with pytest.raises(StoreError, match=r"store\.json"):
        StoreSettings.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"keep": "0.5"},
            r"keep = '0.25', this run has '0.5': give --keep 0.25, or write to another --store",
        ),
        ({"anchor_every_s": 0.0}, "give --anchor-every 30.0"),
        ({"window": 3}, "leave out --window"),
        ({"model_fingerprint": "cd"}, "give the --model it was made with"),
    ],
)
def test_a_mismatch_names_field_values_and_cure(change: dict[str, object], message: str) -> None:
    settings().require_same(settings())
    with pytest.raises(StoreMismatchError, match=message):
        settings().require_same(settings(**change))


def test_rows_and_columns_follow_dtype_and_deepstack() -> None:
    made = settings(dtype="int8", deepstack_layers=2)
    assert token_rows_dtype(made).names == (
        "emb", "correspondence", "echo", "scale", "deepstack_0", "deepstack_0_scale", "deepstack_1", "deepstack_1_scale",
    )  # fmt: skip
    assert token_rows_dtype(made).itemsize == 3 * 24 + 5 * 4
    schema = table_schema("tokens", settings(dtype="bf16", deepstack_layers=1))
    assert schema.field("emb").type == pa.binary(48) == schema.field("deepstack_0").type
    assert "scale" not in schema.names
    assert set(table_schema("tokens", made).names) == {
        "video_id",
        "t",
        "h",
        "w",
        *(token_rows_dtype(made).names or ()),
    }


def test_every_file_says_its_version_and_settings() -> None:
    for table in TABLES:
        note = json.loads(table_schema(table, settings()).metadata[METADATA_KEY])
        assert note == {"schema_version": 1, "table": table, "settings": settings().digest}


def test_every_column_and_field_is_documented() -> None:
    text = DOCS.read_text()
    schemas = [table_schema(table, settings(dtype="int8", deepstack_layers=1)) for table in TABLES]
    names = [name for schema in [*schemas, plan_schema()] for name in schema.names]
    names += list(StoreSettings.__dataclass_fields__)
    assert [name for name in names if f"`{name}`" not in text] == []
