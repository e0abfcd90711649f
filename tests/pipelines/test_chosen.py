"""What `auto` comes to for --tower, --engine and --compute-dtype: by the machine, the model, and what is there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echoprune.answer_run import answer_run, create_answers, with_engine
from echoprune.answer_settings import AnswerSettings
from echoprune.errors import StoreMismatchError
from echoprune.models import fast_engine_refused, fast_tower_refused
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.store import create_store
from pipelines.answer_config import AnswerConfig
from pipelines.chosen import answer_dtype_of, engine_of, index_dtype_of, tower_of
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from tests import stores

GPUS = Crew(encoders=1, decoders=0, gpus_each=1, threads=1)
CORES = Crew(encoders=1, decoders=0, gpus_each=0, threads=1)


def edited(folder: Path, part: str, **values: object) -> str:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= values
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_every_familys_own_checkpoints_are_for_gpus(family: str, tmp_path: Path) -> None:
    model = str(write_tiny_checkpoint(family, tmp_path / "model"))
    assert (fast_tower_refused(model), fast_engine_refused(model)) == ("", "")
    model = edited(tmp_path / "model", "vision_config", hidden_act="relu")
    assert "the checkpoint relu" in fast_tower_refused(model)
    model = edited(tmp_path / "model", "text_config", hidden_act="relu")
    assert "activation silu, this checkpoint has relu" in fast_engine_refused(model)


def test_the_tower_is_that_of_the_machine_and_the_model(tiny: str, tmp_path: Path) -> None:
    config = IndexConfig(store=str(tmp_path / "store"), model=tiny)
    assert (tower_of(config, GPUS), tower_of(config, CORES)) == ("fast", "plain")
    told = IndexConfig(store=str(tmp_path / "store"), model=tiny, tower="plain")
    assert tower_of(told, GPUS) == "plain"
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "other")
    other = IndexConfig(
        store=str(tmp_path / "store"), model=edited(folder, "vision_config", hidden_act="gelu")
    )
    assert tower_of(other, GPUS) == "plain"


@pytest.mark.parametrize("tower", ["plain", "fast"])
def test_a_store_keeps_its_tower_wherever_it_is_continued(tower: str, tiny: str, tmp_path: Path) -> None:
    made = stores.settings(tower=tower)
    create_store(tmp_path / "store", made)
    assert tower_of(IndexConfig(store=str(tmp_path / "store"), model=tiny), None) == tower
    other = "plain" if tower == "fast" else "fast"
    told = IndexConfig(store=str(tmp_path / "store"), model=tiny, tower=other)
    with pytest.raises(
        StoreMismatchError, match=f"tower = '{tower}', this run has '{other}': give --tower {tower}"
    ):
        create_store(tmp_path / "store", stores.settings(tower=tower_of(told, None)))


def test_a_new_store_is_computed_in_what_its_machine_is_good_at(tiny: str, tmp_path: Path) -> None:
    config = IndexConfig(store=str(tmp_path / "store"), model=tiny)
    assert [index_dtype_of(config, people, own="bf16") for people in (GPUS, CORES)] == ["bf16", "fp32"]
    told = IndexConfig(store=str(tmp_path / "store"), model=tiny, compute_dtype="fp16")
    assert [index_dtype_of(told, people, own="bf16") for people in (GPUS, CORES)] == ["fp16", "fp16"]
    create_store(tmp_path / "store", stores.settings(compute_dtype="bf16"))
    assert index_dtype_of(config, None, own="fp16") == "bf16"


@pytest.mark.parametrize("engine", ["library", "fast"])
def test_answers_keep_their_engine_and_dtype(engine: str, tiny: str, tmp_path: Path) -> None:
    def config(**options: object) -> AnswerConfig:
        given = {"store": "s", "model": tiny, "out": str(tmp_path / "out"), "questions": "q"}
        return AnswerConfig(**(given | options))  # type: ignore[arg-type]

    assert [answer_dtype_of(config(), people, own="bf16") for people in (GPUS, CORES)] == ["bf16", "fp32"]
    assert answer_dtype_of(config(compute_dtype="fp16"), CORES, own="bf16") == "fp16"
    assert (engine_of(config(), GPUS), engine_of(config(), CORES)) == ("fast", "library")
    # The library samples, whatever the engine: what its answers are called must not depend on the machine.
    assert engine_of(config(temperature=0.5), GPUS) == "library"
    assert engine_of(config(engine="library"), GPUS) == "library"
    settings = AnswerSettings(**config().settings_values())
    plain = answer_run(
        settings, job="answer", model_fingerprint="0", model_digest="1", compute_dtype="fp32", store_digest="2", extra={}
    )  # fmt: skip
    run, chosen = with_engine(plain, settings, engine)
    assert (chosen.engine, run.settings.get("engine", "library")) == (engine, engine)
    assert chosen.named() == run.settings
    create_answers(tmp_path / "out", run)
    assert (engine_of(config(), None), answer_dtype_of(config(), None, own="bf16")) == (engine, "fp32")
