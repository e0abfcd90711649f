from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from echoprune.embedding import load_word_embeddings, require_model
from echoprune.errors import ModelError, StoreMismatchError, UnknownModelError
from echoprune.models import fingerprint
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.models.tiny_families import FAMILIES
from tests.stores import settings

TEXT = "A dog – ein Hund, 犬 – runs!"
LAYOUTS = [(family, layout) for family, recipe in FAMILIES.items() for layout in recipe.layouts]


def of_the_real_model(folder: Path, text: str) -> torch.Tensor:
    """Input embeddings as the library gives them: the whole model loaded, the text tokenized."""
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(folder)
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > 10
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor(ids)).float()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_the_same_as_the_real_model(tmp_path: Path, family: str, layout: str) -> None:
    folder = write_tiny_checkpoint(family, tmp_path / "model", layout=layout, seed=3)
    words = load_word_embeddings(str(folder))
    vectors = words.embed(TEXT)
    assert vectors.dtype == torch.float32 and words.dim == vectors.shape[1] == 64
    assert torch.equal(vectors, of_the_real_model(folder, TEXT))
    assert words.embed("").shape == (0, 64)


def test_bf16_weights_and_a_sharded_checkpoint(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen3_vl", tmp_path / "model", dtype="bf16")
    expected = of_the_real_model(folder, TEXT)
    assert torch.equal(load_word_embeddings(str(folder)).embed(TEXT), expected)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"part-{int('embed_tokens' in name)}.safetensors" for name in weights}
    for file in set(place.values()):
        save_file(
            {name: weights[name] for name in weights if place[name] == file}, folder / file, {"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    # The file with all the other weights is not opened.
    (folder / "part-0.safetensors").unlink()
    assert torch.equal(load_word_embeddings(str(folder)).embed(TEXT), expected)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tied_weights(tmp_path: Path, family: str) -> None:
    folder = write_tiny_checkpoint(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    other = tmp_path / "head_only"
    shutil.copytree(folder, other)
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if "lm_head" not in name})
    vectors = load_word_embeddings(str(folder)).embed(TEXT)
    assert torch.equal(vectors, of_the_real_model(folder, TEXT))

    def keep_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embedded = next(name for name in weights if "embed_tokens" in name)
        head = next(name for name in weights if "lm_head" in name)
        return {name: value for name, value in weights.items() if name != embedded} | {
            head: weights[embedded]
        }

    rewrite(other, keep_head)
    assert torch.equal(load_word_embeddings(str(other)).embed(TEXT), vectors)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        load_word_embeddings(str(tmp_path))
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model")
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    rewrite(bare, lambda weights: {name: v for name, v in weights.items() if "embed_tokens" not in name})
    with pytest.raises(ModelError, match=r"holds no model\.language_model\.embed_tokens\.weight; download"):
        load_word_embeddings(str(bare))
    small = tmp_path / "small"
    shutil.copytree(folder, small)
    rewrite(
        small, lambda weights: {n: v[:60].clone() if "embed_tokens" in n else v for n, v in weights.items()}
    )
    with pytest.raises(ModelError, match="60 word embeddings"):
        load_word_embeddings(str(small)).embed("zebra")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_word_embeddings(str(folder))


def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    folders = [write_tiny_checkpoint("qwen2_5_vl", tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    made_with = settings(model_fingerprint=fingerprint(str(folders[0])))
    require_model(made_with, str(folders[0]))
    with pytest.raises(StoreMismatchError, match="give the --model that the store was made with") as caught:
        require_model(made_with, str(folders[1]))
    assert "\n" not in str(caught.value)
