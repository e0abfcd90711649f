from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from echoprune.data import Frames
from echoprune.errors import ConfigError, ModelError
from echoprune.models import families, fingerprint, frame_layout, load_encoder, model_settings
from echoprune.models.tiny import write_tiny_checkpoint

Edit = Callable[..., Path]


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def rewrite(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; None removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Weights


def test_one_fingerprint_for_all_layouts(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    expected = fingerprint(str(tiny))
    assert len(expected) == 64 and set(expected) <= set("0123456789abcdef")
    older = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "older", layout="visual")
    assert fingerprint(str(older)) == fingerprint(str(sharded)) == expected


def test_fingerprint_follows_what_tokens_depend_on(tiny: Path, edited: Edit, tmp_path: Path) -> None:
    expected = fingerprint(str(tiny))

    def nudge(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.visual.blocks.2.mlp.up_proj.weight"][5, 7] += 1e-6
        return weights

    changed = {expected, fingerprint(str(edited(nudge)))}
    half = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "half", dtype="bf16")
    changed.add(fingerprint(str(half)))
    for number, (file, changes) in enumerate(
        [
            ("video_preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
            ("video_preprocessor_config.json", {"resample": 2}),
            ("video_preprocessor_config.json", {"size": {"shortest_edge": 6272, "longest_edge": 602112}}),
        ]
    ):
        folder = copy_of(tiny, tmp_path / str(number))
        rewrite(folder / file, **changes)
        changed.add(fingerprint(str(folder)))
    folder = copy_of(tiny, tmp_path / "window")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    rewrite(folder / "config.json", vision_config=vision | {"window_size": 112})
    changed.add(fingerprint(str(folder)))
    assert len(changed) == 7


def test_fingerprint_ignores_what_tokens_do_not_depend_on(tiny: Path, edited: Edit) -> None:
    def other_language_model(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value if ".visual." in name else value + 1 for name, value in weights.items()}

    folder = edited(other_language_model)
    rewrite(folder / "config.json", transformers_version="5.99", vision_start_token_id=1)
    rewrite(folder / "video_preprocessor_config.json", size={"shortest_edge": 3136, "longest_edge": 99999})
    assert fingerprint(str(folder)) == fingerprint(str(tiny))


def test_files_without_vision_weights_are_never_opened(
    tiny: Path, sharded: Path, make_frames: Callable[..., Frames]
) -> None:
    """The language model's file may be missing altogether: nothing of it is read, let alone held."""
    (sharded / "model-00001-of-00003.safetensors").unlink()
    frames = make_frames(2, 56, 84)
    tokens = [load_encoder(str(folder), segment_cells=2).encode(frames).tokens for folder in (tiny, sharded)]
    assert torch.equal(*tokens)
    assert fingerprint(str(sharded)) == fingerprint(str(tiny))


def test_a_missing_vision_weight_is_never_made_up(edited: Edit) -> None:
    name = "model.visual.blocks.3.attn.qkv.weight"
    folder = edited(lambda weights: {key: value for key, value in weights.items() if key != name})
    with pytest.raises(
        ModelError, match=r"1 missing vision weights, such as blocks\.3\.attn\.qkv\.weight; download"
    ) as e:
        load_encoder(str(folder), segment_cells=1)
    one_line(e)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"model.visual.merger.ln_q.weight": torch.ones(65)}, "1 mismatched .*ln_q"),
        (lambda w: w | {"model.visual.extra.weight": torch.ones(2)}, "1 unexpected .*extra.weight"),
        (lambda w: w | {"visual.merger.ln_q.weight": torch.ones(64)}, "mixes layouts"),
        (lambda w: {k: v for k, v in w.items() if "visual" not in k}, "no vision weights"),
    ],
)
def test_foreign_weights(change: Callable[..., dict[str, torch.Tensor]], message: str, edited: Edit) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_encoder(str(edited(change)), segment_cells=1)
    one_line(caught)


def test_damaged_weight_files(tiny: Path, sharded: Path, tmp_path: Path) -> None:
    short = copy_of(tiny, tmp_path / "short") / "model.safetensors"
    short.write_bytes(short.read_bytes()[:-1000])
    gone = copy_of(tiny, tmp_path / "gone")
    (gone / "model.safetensors").unlink()
    (sharded / "model-00002-of-00003.safetensors").unlink()
    for folder in (short.parent, gone, sharded):
        for use in (lambda path: load_encoder(path, segment_cells=1), fingerprint):
            with pytest.raises(ModelError, match=r"cannot be read.*download") as caught:
                use(str(folder))
            one_line(caught)


# Configuration


def test_settings_come_from_configuration_alone(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    settings = model_settings(str(folder), max_pixels=200704)
    assert (settings.family, settings.dim, settings.dtype, settings.deepstack_layers) == (
        "qwen2_5_vl",
        64,
        "fp32",
        0,
    )
    assert (settings.default_temperature, settings.default_window) == (0.5, None)
    assert settings.layout == frame_layout(str(folder), max_pixels=200704)
    assert settings.layout.cell_frames == 2 and settings.layout.grid_hw((448, 448)) == (16, 16)


def test_dtype_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", dtype="bf16")
    rewrite(folder / "config.json", dtype=None)
    assert model_settings(str(folder)).dtype == "bf16"
    rewrite(folder / "config.json", torch_dtype="float16")
    assert model_settings(str(folder)).dtype == "fp16"
    rewrite(folder / "config.json", torch_dtype="float8_e4m3fn")
    with pytest.raises(ModelError, match="float8_e4m3fn; accepted are float32, bfloat16, float16"):
        model_settings(str(folder))


def test_bounds_in_every_spelling(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")

    def bounds(max_pixels: int | None = None) -> tuple[int, int]:
        layout = frame_layout(str(folder), max_pixels=max_pixels)
        return layout.min_pixels, layout.max_pixels

    assert bounds() == (3136, 768 * 784)
    assert bounds(200704) == (3136, 200704)
    video = folder / "video_preprocessor_config.json"
    (folder / "processor_config.json").write_text(
        json.dumps({"video_processor": {"size": {"shortest_edge": 784, "longest_edge": 7840}}})
    )
    assert bounds() == (784, 7840)
    # A limit above the checkpoint's own does not enlarge frames.
    assert bounds(200704) == (784, 7840)
    (folder / "processor_config.json").unlink()
    rewrite(video, min_pixels=6272, max_pixels=62720)
    assert bounds() == (6272, 62720)
    # Asked for less than the floor: the floor goes, the cap stays.
    assert bounds(3136) == (784, 3136)
    video.unlink()
    assert bounds() == (3136, 16384 * 784)
    (folder / "preprocessor_config.json").unlink()
    assert bounds() == (128 * 784, 768 * 784)
    with pytest.raises(ConfigError, match="max pixels 783 is below one token: give at least 784"):
        bounds(783)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16 in the preprocessor and 14"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 0}, "resample 0"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge"),
    ],
)
def test_preprocessors_that_would_change_the_pixels(
    changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    rewrite(folder / "video_preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        frame_layout(str(folder), max_pixels=None)
    one_line(caught)


# Finding a model


def test_unknown_family_lists_the_known(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    rewrite(folder / "config.json", model_type="llama")
    with pytest.raises(
        ModelError,
        match="family 'llama', which has no adapter; supported: llava_onevision, qwen2_5_vl, qwen3_vl",
    ):
        load_encoder(str(folder), segment_cells=1)
    assert families() == ("llava_onevision", "qwen2_5_vl", "qwen3_vl")


def test_names_that_lead_nowhere(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    for name, message in (
        (tmp_path / "none", "not found: no such folder"),
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "damaged", "cannot be read"),
        ("just-a-name", "not of the form owner/name"),
    ):
        for use in (lambda name: load_encoder(name, segment_cells=1), fingerprint, model_settings):
            with pytest.raises(ModelError, match=message) as caught:
                use(str(name))
            one_line(caught)


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        ({"segment_cells": 0}, "at least 1"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"compute_dtype": "int8"}, "fp32, bf16, fp16"),
    ],
)
def test_options_that_cannot_be_met(options: dict[str, object], cure: str, tiny: Path) -> None:
    with pytest.raises(ConfigError, match=cure):
        load_encoder(str(tiny), **({"segment_cells": 1} | options))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        load_encoder(str(tiny), segment_cells=1, device="cuda")
