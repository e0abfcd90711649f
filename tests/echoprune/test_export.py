from __future__ import annotations

import hashlib
import importlib.util
import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echoprune.answer_store import open_answers
from echoprune.errors import ConfigError, StoreError
from echoprune.export import FORMATS, export_answers, export_tokens
from echoprune.pool import unpool
from echoprune.store import TokenStore, open_store
from echoprune.store_files import column_values
from tests.answer_folders import answer, evidence, failed, write_answers
from tests.stores import settings, small_store

WITH_LANCE = importlib.util.find_spec("lance") is not None


def small(folder: Path, dtype: str) -> TokenStore:
    small_store(folder, settings(dtype=dtype, deepstack_layers=2))
    return open_store(folder)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


# Answers


def test_answers_as_a_sample_log(tmp_path: Path) -> None:
    choice = answer(
        "q1",
        "Which – animal?",
        "B. a dog",
        options=("cat", "dog"),
        answer="B",
        kind="animals",
        parsed_choice="B",
        correct=True,
        evidence=evidence((1, 2, 0.5)),
        kept=np.array([[0, 1, 2]], np.int32),
        extra={"level": 3, "day": date(2026, 5, 11)},
    )
    extra = {"level": pa.int64(), "day": pa.date32()}
    write_answers(tmp_path / "run", "a1", [choice, failed("q0", "Where?")], extra=extra)
    wrong = answer("q2", "What?", "a ball", answer="a bat", correct=False)
    write_answers(tmp_path / "run", "b2", [wrong])
    out = tmp_path / "new" / "samples.jsonl"
    assert export_answers(open_answers(tmp_path / "run"), out) == 3
    text = out.read_text(encoding="utf-8")
    first, second, third = [json.loads(line) for line in text.splitlines()]
    assert "Which – animal?" in text and text.endswith("\n")
    assert [sample["doc_id"] for sample in (first, second, third)] == [0, 1, 2]
    doc = first.pop("doc")
    assert doc["question_id"] == "q1" and doc["options"] == ["cat", "dog"]
    assert (doc["level"], doc["day"], doc["uri"]) == (3, "2026-05-11", "/v/clip.mp4")
    result = first.pop("echoprune")
    assert result["status"] == "ok" and result["evidence"] == [{"start_s": 1.0, "end_s": 2.0, "score": 0.5}]
    assert first == {
        "doc_id": 0,
        "target": "B",
        "input": "Which – animal?",
        "resps": [["B. a dog"]],
        "filtered_resps": ["B"],
        "doc_hash": hashlib.sha256(json.dumps(doc, indent=2, ensure_ascii=False).encode()).hexdigest(),
        "target_hash": hashlib.sha256(b"B").hexdigest(),
        "accuracy": 1.0,
    }
    assert second["resps"] == [[""]] and second["target"] == "" and "accuracy" not in second
    assert second["echoprune"]["error_class"] == "unknown_video"
    assert third["filtered_resps"] == ["a ball"] and third["accuracy"] == 0.0
    with pytest.raises(ConfigError, match="is there already"):
        export_answers(open_answers(tmp_path / "run"), out)
    assert not leftovers(out.parent)


def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    write_answers(tmp_path, "a1", [answer("q1", "?", "x")])
    write_answers(tmp_path, "b2", [answer("q2", "?", "y" * 500)])
    answers = open_answers(tmp_path)
    path = tmp_path / "answers/b2.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = bytes(36)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="damaged"):
        export_answers(answers, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists() and not [n for n in leftovers(tmp_path) if n != ".tmp"]


# Tokens


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_tokens_as_parquet(tmp_path: Path, dtype: str) -> None:
    store = small(tmp_path / "store", dtype)
    out = tmp_path / "out"
    tokens = None
    count = export_tokens(store, out)
    tokens, cells = pq.read_table(out / "tokens.parquet"), pq.read_table(out / "cells.parquet")
    assert count == len(tokens) == sum(store.videos()["kept"].to_pylist())
    assert sorted(path.name for path in out.iterdir()) == [
        "cells.parquet",
        "tokens.parquet",
        "videos.parquet",
    ]
    assert not any("scale" in name for name in tokens.schema.names)
    assert tokens.schema.field("emb").type.list_size == 24 and pa.types.is_float32(
        tokens.schema.field("emb").type.value_type
    )
    for row in pq.read_table(out / "videos.parquet").to_pylist():
        if row["status"] == "failed":
            continue
        expected = store.tokens(row["video_id"])
        mine = tokens.filter(pa.compute.equal(tokens["video_id"], row["video_id"]))
        assert np.array_equal(np.array(mine["emb"].to_pylist(), np.float32), expected.tokens.float().numpy())
        assert expected.deepstack is not None
        last = np.array(mine["deepstack_1"].to_pylist(), np.float32)
        assert np.array_equal(last, expected.deepstack[1].float().numpy())
        places = np.stack([mine[name].to_numpy() for name in ("t", "h", "w")], axis=1)
        assert np.array_equal(places, expected.positions.numpy())
        assert np.array_equal(mine["echo"].to_numpy(), expected.echo.numpy())
        stored = store.cells(row["video_id"])
        of_video = cells.filter(pa.compute.equal(cells["video_id"], row["video_id"]))
        assert of_video.drop_columns("pooled").equals(
            stored.drop_columns("pooled").replace_schema_metadata(None)
        )
        pooled = unpool(column_values(stored["pooled"])).float().numpy()
        assert np.array_equal(np.array(of_video["pooled"].to_pylist(), np.float32), pooled)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_tokens_as_numpy(tmp_path: Path, dtype: str) -> None:
    store = small(tmp_path / "store", dtype)
    count = export_tokens(store, tmp_path / "out", format="npz")
    rows = [row for row in store.videos().to_pylist() if row["status"] != "failed"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{row['video_id']}.npz" for row in rows}
    assert count == sum(row["kept"] for row in rows)
    for row in rows:
        expected, cells = store.tokens(row["video_id"]), store.cells(row["video_id"])
        with np.load(tmp_path / "out" / f"{row['video_id']}.npz", allow_pickle=False) as arrays:
            assert arrays["emb"].dtype == np.float32
            assert np.array_equal(arrays["emb"], expected.tokens.float().numpy())
            assert expected.deepstack is not None
            assert np.array_equal(arrays["deepstack_0"], expected.deepstack[0].float().numpy())
            assert np.array_equal(arrays["h"], expected.positions[:, 1].numpy())
            assert str(arrays["uri"]) == row["uri"] and tuple(arrays["grid_thw"]) == expected.grid_thw
            assert np.array_equal(arrays["cell_time_s"], cells["time_s"].to_numpy())
            assert np.array_equal(arrays["cell_anchor"], cells["anchor"].to_numpy())
            assert arrays["cell_pooled"].shape == (row["cells"], 24)
            assert "scale" not in arrays and "video_id" not in arrays


@pytest.mark.skipif(not WITH_LANCE, reason="needs the package pylance")
def test_tokens_as_lance(tmp_path: Path) -> None:
    import lance

    store = small(tmp_path / "store", "bf16")
    count = export_tokens(store, tmp_path / "lance", format="lance")
    export_tokens(store, tmp_path / "parquet")
    for name in ("tokens", "cells", "videos"):
        read = lance.dataset(tmp_path / "lance" / f"{name}.lance").to_table()
        assert read.to_pylist() == pq.read_table(tmp_path / "parquet" / f"{name}.parquet").to_pylist()
    assert count == lance.dataset(tmp_path / "lance" / "tokens.lance").count_rows()


@pytest.mark.skipif(WITH_LANCE, reason="pylance is there")
def test_without_lance_the_cure_is_named(tmp_path: Path) -> None:
    store = small(tmp_path / "store", "fp32")
    with pytest.raises(ConfigError, match="pip install pylance"):
        export_tokens(store, tmp_path / "out", format="lance")
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_and_nothing_half_done_stays(tmp_path: Path) -> None:
    store = small(tmp_path / "store", "fp32")
    with pytest.raises(ConfigError, match="'csv'"):
        export_tokens(store, tmp_path / "out", format="csv")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        export_tokens(store, tmp_path / "out")
    (tmp_path / "store" / store.files("tokens")[1]).unlink()
    for kind in FORMATS[:2]:
        with pytest.raises(StoreError):
            export_tokens(store, tmp_path / kind, format=kind)
        assert not (tmp_path / kind).exists()
    assert not leftovers(tmp_path)
