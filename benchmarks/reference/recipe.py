"""What the reference models are: sizes of the real classes, their vocabulary, and how long they are trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from echoprune.models.tiny_families import BYTES, FAMILIES
from echoprune.scene import COLOURS, SHAPES, plan_scene
from echoprune.scene_questions import scene_questions
from echoprune.templates import template_for

MERGES = 768
DIM = 256
# Words of questions that name nothing to be seen, as they are spelled there.
FUNCTION_WORDS = (
    "What",
    " colour",
    " is",
    " the",
    " that",
    " up",
    " pops",
    " pop",
    " passes",
    " by",
    " stands",
    " still",
    " stand",
    " thing",
    " things",
    "Where",
    "Which",
    " way",
    "Does",
    " does",
    " first",
    " or",
    "How",
    " many",
    "In",
    " which",
    " minute",
    " pass",
    " a",
    "?",
    ",",
)


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    `sizes`: (width, height) of frames, drawn for each batch, each a whole number of tokens. `cells`: fewest and most
    cells of a clip, out of `of_cells` of `seconds`. `questions` of each clip, each after the video alone. `matrix_rate`: the
    peak of Muon's learning rate, of the weights of products; `learning_rate`: of AdamW's, of all others.
    """

    family: str
    sizes: tuple[tuple[int, int], ...]
    steps: int
    batch: int = 32
    cells: tuple[int, int] = (7, 12)
    of_cells: int = 160
    seconds: float = 160.0
    questions: int = 20
    learning_rate: float = 1e-3
    matrix_rate: float = 2.5e-3
    warm_up: int = 200
    weight_decay: float = 0.05
    alignment: float = 0.5
    seed: int = 1


RECIPES = {
    "qwen2_5_vl": Recipe("qwen2_5_vl", ((224, 224), (224, 224), (280, 168), (168, 280)), 1750, batch=64),
    "qwen3_vl": Recipe("qwen3_vl", ((224, 224), (224, 224), (256, 192), (192, 256)), 3200),
    "llava_onevision": Recipe("llava_onevision", ((224, 224),), 4900, cells=(6, 10)),
}


def small(recipe: Recipe) -> Recipe:
    """The recipe for 2 CPU cores: the same model and data, of which it sees a hundredth."""
    return replace(recipe, sizes=recipe.sizes[:1], steps=400, batch=8, cells=(6, 8), warm_up=50)


def write_checkpoint(folder: Path, family: str) -> None:
    """Makes `folder` a checkpoint without weights: configuration, tokenizer, chat template, preprocessors."""
    import transformers  # noqa: PLC0415

    recipe = FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, recipe.special_tokens, recipe.chat_template)
    config = _CONFIGS[family](ids)
    config.architectures = [recipe.model_class]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    transformers.GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
    ).save_pretrained(folder)
    for name, settings in recipe.preprocessors.items():
        changed = settings | _FRAMES.get(family, {}).get(name, {})
        (folder / name).write_text(json.dumps(changed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# Frames of at most 224 x 224 pixels, of which the models have seen no larger ones.
_FRAMES = {
    "qwen2_5_vl": {
        "preprocessor_config.json": {"min_pixels": 16 * 28 * 28, "max_pixels": 64 * 28 * 28},
        "video_preprocessor_config.json": {
            "size": {"shortest_edge": 16 * 28 * 28, "longest_edge": 64 * 28 * 28}
        },
    },
    "qwen3_vl": {
        "preprocessor_config.json": {
            "size": {"shortest_edge": 16 * 32 * 32, "longest_edge": 54 * 32 * 32},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": {
            "size": {"shortest_edge": 16 * 32 * 32, "longest_edge": 54 * 32 * 32}
        },
    },
}


def write_tokenizer(folder: Path, special_tokens: Sequence[str], chat_template: str) -> dict[str, int]:
    """Trains a byte-level BPE tokenizer on questions and answers, writes it; returns the ids of its special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    # One symbol a digit, as Qwen's own tokenizer has it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTES + MERGES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special_tokens]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return {token: int(fast.convert_tokens_to_ids(token)) for token in special_tokens}


def corpus() -> list[str]:
    """Prompts, answers and captions of 400 scenes, and each word that names something seen, with the blank before it."""
    rng = np.random.default_rng(0)
    texts = [
        f"{article} {colour} {shape}" for article in ("the", "a") for colour in COLOURS for shape in SHAPES
    ]
    for _ in range(400):
        scene = plan_scene(rng, seconds=160.0, size=(224, 224))
        for questions in scene_questions(scene, rng, video="").values():
            for question in questions:
                texts += [template_for(question, "auto").render(question), question.answer or ""]
    texts += [f"<{second}.5 seconds>" for second in range(160)]
    return texts


def vocabulary_size(ids: dict[str, int]) -> int:
    """Ids that the embedding has rows for."""
    return -(-(max(ids.values()) + 1) // 64) * 64


def _text(ids: dict[str, int], **changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary_size(ids),
        "hidden_size": DIM,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    } | changes


def _qwen_ids(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
    }


def _qwen2_5_vl(ids: dict[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig  # noqa: PLC0415

    # Half of the 32 rotary pairs for time, down to 0.013 a position: 480 positions are one turn, 320 are 160 s.
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 8, 8]}
    return Qwen2_5_VLConfig(
        text_config=_text(ids, rope_parameters=rope),
        vision_config={
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 6,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": DIM,
            "tokens_per_second": 2,
        },
        **_qwen_ids(ids),
    )


def _qwen3_vl(ids: dict[str, int]) -> Any:
    from transformers import Qwen3VLConfig  # noqa: PLC0415

    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config=_text(ids, head_dim=64, intermediate_size=704, rope_parameters=rope),
        vision_config={
            "depth": 4,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 6,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [1],
            "out_hidden_size": DIM,
        },
        **_qwen_ids(ids),
    )


def _llava_onevision(ids: dict[str, int]) -> Any:
    from transformers import LlavaOnevisionConfig  # noqa: PLC0415

    return LlavaOnevisionConfig(
        text_config=_text(ids) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=[[384, 384], [384, 768], [768, 384]],
        tie_word_embeddings=True,
    )


_CONFIGS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "llava_onevision": _llava_onevision}
