"""Tiny checkpoints and small frames shared by the tests of the models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from echoprune.data import Frames
from echoprune.models.tiny import write_tiny_checkpoint

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny fp32 checkpoint; not to be changed."""
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_of(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family's name to its tiny fp32 checkpoint; not to be changed."""
    made = {"qwen2_5_vl": tiny}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = write_tiny_checkpoint(family, tmp_path_factory.mktemp(family) / "model")
        return made[family]

    return find


@pytest.fixture
def edited(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a copy of `tiny`, or of another checkpoint, with changed weights."""

    def edit(change: Callable[[Weights], Weights], source: Path = tiny) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(source, folder)
        save_file(
            change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"}
        )
        return folder

    return edit


@pytest.fixture
def sharded(tiny: Path, tmp_path: Path) -> Path:
    """A copy of `tiny` in three files: the language model, and two that share the vision weights."""
    folder = tmp_path / "sharded"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {
        name: 0 if ".visual." not in name else 1 + index % 2 for index, name in enumerate(sorted(weights))
    }
    weight_map = {name: f"model-{place + 1:05}-of-00003.safetensors" for name, place in places.items()}
    for file in sorted(set(weight_map.values())):
        part = {name: weights[name] for name, place in weight_map.items() if place == file}
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def noise_frames(
    cells: int, height: int, width: int, *, seed: int = 0, first_cell: int = 0, cell_frames: int = 2
) -> Frames:
    """Uniform noise, read-only as frames from Ray's object store are."""
    shape = (cell_frames * cells, height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels.setflags(write=False)
    return Frames(pixels, first_cell=first_cell, cell_frames=cell_frames, decoder="pyav")


def part_of(frames: Frames, start: int, stop: int) -> Frames:
    """Cells [start, stop) of `frames`."""
    each = frames.cell_frames
    return Frames(
        frames.pixels[each * start : each * stop], first_cell=start, cell_frames=each, decoder="pyav"
    )


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., Frames]:
    return noise_frames


@pytest.fixture(scope="session")
def cut() -> Callable[..., Frames]:
    return part_of
