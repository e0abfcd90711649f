"""Checkpoints on disk: finding them, reading their configuration, and streaming their vision weights.

A model is named by a local folder or by a hub id (`owner/name`). From the hub come the configuration, the tokenizer
and those weight files that hold vision weights, nothing else. Only safetensors are read: pickled weights run code.
Nothing here knows a model family; the names of weights are mapped by the library's own table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from echoprune.errors import ModelError, UnknownModelError

if TYPE_CHECKING:
    import torch

    from echoprune.models.encoder import Family

# The models of the package itself, by name; each folder has a card that says what it can do.
_REFERENCE = Path(__file__).parent / "reference"
PACKAGED = {
    "reference": _REFERENCE / "qwen2_5_vl",
    "reference-qwen3-vl": _REFERENCE / "qwen3_vl",
    "reference-llava-onevision": _REFERENCE / "llava_onevision",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_STORED_DTYPES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


def find_checkpoint(model: str) -> Path:
    """The folder with the checkpoint's configuration: `model` itself, or the local copy of a hub repository.

    A name of PACKAGED is that of a small trained model of the package, unless there is a folder of that name.

    Raises UnknownModelError when there is neither such a folder nor a reachable repository of that name.
    """
    folder = Path(model).expanduser()
    if model in PACKAGED and not folder.exists():
        return PACKAGED[model]
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UnknownModelError(
                f"{model} is no checkpoint: it has no config.json; name a folder written by save_pretrained"
            )
        return folder
    if folder.exists():
        raise UnknownModelError(
            f"{model} is a file; name the checkpoint's folder or a hub id such as owner/name"
        )
    if not _HUB_ID.fullmatch(model):
        raise UnknownModelError(
            f"model {model} not found: no such folder, and not of the form owner/name; check the path, or take the "
            f"package's own: {', '.join(PACKAGED)}"
        )
    return _download(model, None, _SMALL_FILES)


def _download(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - not needed for local folders
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    # Broken connections are errors of httpx or httpx2, by the client's version; either is a base of its own HTTP error.
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    refusals: tuple[type[Exception], ...] = (OSError, HFValidationError, *transport)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    # The client's other errors (offline, not in the cache, no such repository, full disk) are OSErrors.
    except refusals as error:
        reason = " ".join(str(error).split())[:200]
        raise UnknownModelError(
            f"model {model} not found: no such folder, and the hub gave {type(error).__name__} ({reason}); "
            "check the name and the network, or download it once and pass the folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} if there is no such file. Raises ModelError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; download the checkpoint again") from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} holds a {type(value).__name__}, not an object; download the checkpoint again"
        )
    return value


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The checkpoint's settings for video frames, from the first of the files that the library asks too; {} if none."""
    nested = read_json(folder / "processor_config.json").get("video_processor")
    if isinstance(nested, dict):
        return nested
    return read_json(folder / "video_preprocessor_config.json") or read_json(
        folder / "preprocessor_config.json"
    )


def config_dtype(folder: Path, family: Family) -> str:
    """The checkpoint's own dtype, "fp32", "bf16" or "fp16": as its configuration says, else that of its weights."""
    config = read_json(folder / "config.json")
    stated = config.get("dtype") or config.get("torch_dtype")
    if stated is None:
        stored = {str(tensor.get_dtype()) for _, tensor in _vision_slices(folder, family)}
        known = [short for name, short in _STORED_DTYPES.items() if name in stored]
        if not known:
            raise ModelError(
                f"{folder} holds vision weights of {sorted(stored)}; accepted are {list(_STORED_DTYPES)}"
            )
        return known[0]
    name = str(stated).removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(f"{folder} is of dtype {name}; accepted are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def mapped_names(names: Iterable[str], folder: Path, family: Family) -> dict[str, str]:
    """{stored name: name in the vision tower} for those of `names` that are vision weights, whatever the layout."""
    mapped: dict[str, str] = {}
    for name, today in todays_names(names, empty_model(folder, family)).items():
        for prefix, replacement in family.vision_prefixes.items():
            if today.startswith(prefix):
                mapped[name] = replacement + today.removeprefix(prefix)
    if len(set(mapped.values())) != len(mapped):
        raise ModelError(
            "two stored weights map to one vision weight; the checkpoint mixes layouts: save it again"
        )
    return mapped


def empty_model(folder: Path, family: Family) -> Any:
    """The library's whole model of a checkpoint, without memory for weights; 0.1 s for 7B."""
    # Imports torch and takes seconds: only those who read weights pay.
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model_class = getattr(transformers, family.weights_class)
    with torch.device("meta"):
        return model_class(model_class.config_class.from_pretrained(folder))


def todays_names(names: Iterable[str], model: Any) -> dict[str, str]:
    """{stored name: name in `model`}, whatever the layout; the library collects its renamings from a model."""
    from transformers import conversion_mapping, core_model_loading  # noqa: PLC0415

    rules = conversion_mapping.get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, core_model_loading.WeightRenaming)]
    today_names = model.state_dict()
    return {
        name: core_model_loading.rename_source_key(name, renamings, [], model.base_model_prefix, today_names)[
            0
        ]
        for name in names
    }


def embedding_slice(folder: Path, family: Family) -> Any:
    """The lazy safetensors slice (vocabulary, D) of the language model's input embeddings; no other weight is read.

    A checkpoint with tied weights may hold them under the name of the output embeddings. Raises ModelError where
    there are none.
    """
    model = empty_model(folder, family)
    owner = {id(module): name for name, module in model.named_modules()}
    accepted = [f"{owner[id(model.get_input_embeddings())]}.weight"]
    configs = (model.config, model.config.get_text_config())
    if any(getattr(config, "tie_word_embeddings", False) for config in configs):
        accepted.append(f"{owner[id(model.get_output_embeddings())]}.weight")
    index = read_json(folder / _INDEX).get("weight_map")
    if isinstance(index, dict):
        stored = {str(name): str(file) for name, file in index.items()}
    else:
        _fetch(folder, [_SINGLE])
        stored = dict.fromkeys(_open_weights(folder / _SINGLE).keys(), _SINGLE)
    today = todays_names(stored, model)
    for wanted in accepted:
        for name in (name for name in stored if today[name] == wanted):
            _fetch(folder, [stored[name]])
            return _open_weights(folder / stored[name]).get_slice(name)
    raise ModelError(f"{folder} holds no {accepted[0]}; download the whole checkpoint again")


def vision_tensors(folder: Path, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the vision tower, tensor on the CPU as stored) of each vision weight, sorted by name."""
    for name, tensor in _vision_slices(folder, family):
        yield name, tensor[...]


def fingerprint(folder: Path, family: Family) -> str:
    """64 hex digits that change when the tokens could: configuration and vision weights, never the path.

    Equal for all layouts and for sharded and unsharded files; the language model and the override of `max_pixels`
    are no part of it. Streams over the weights, one tensor in memory at a time.
    """
    import torch  # noqa: PLC0415

    digest = hashlib.sha256()
    identity = {"family": family.name, **family.identity(folder)}
    digest.update(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in _vision_slices(folder, family):
        digest.update(f"\n{name} {tensor.get_dtype()} {list(tensor.get_shape())}\n".encode())
        digest.update(tensor[...].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def vision_files(folder: Path, family: Family) -> dict[str, dict[str, str]]:
    """{weight file: {stored name: name in the vision tower}} of the files that hold vision weights; reads headers only.

    Files that a hub repository has and `folder` lacks are downloaded. Raises ModelError when there are none.
    """
    index = read_json(folder / _INDEX).get("weight_map")
    if isinstance(index, dict):
        files: dict[str, dict[str, str]] = {}
        for stored, name in mapped_names(index, folder, family).items():
            files.setdefault(str(index[stored]), {})[stored] = name
        _fetch(folder, sorted(files))
    else:
        _fetch(folder, [_SINGLE])
        with _open_weights(folder / _SINGLE) as weights:
            files = {_SINGLE: mapped_names(weights.keys(), folder, family)}
    if not any(files.values()):
        raise ModelError(
            f"{folder} holds no vision weights under {' or '.join(family.vision_prefixes)}*; "
            "download the whole checkpoint again"
        )
    return files


def fetch_weights(folder: Path) -> None:
    """Downloads the weight files of the whole model that `folder`, the local copy of a hub repository, lacks."""
    index = read_json(folder / _INDEX).get("weight_map")
    _fetch(folder, sorted({str(file) for file in index.values()}) if isinstance(index, dict) else [_SINGLE])


def _vision_slices(folder: Path, family: Family) -> Iterator[tuple[str, Any]]:
    """(name in the vision tower, lazy safetensors slice) of each vision weight, sorted by that name."""
    from safetensors import SafetensorError  # noqa: PLC0415

    files = vision_files(folder, family)
    opened = {file: _open_weights(folder / file) for file in files}
    order = sorted((name, stored, file) for file, names in files.items() for stored, name in names.items())
    for name, stored, file in order:
        try:
            yield name, opened[file].get_slice(stored)
        except SafetensorError as error:
            raise ModelError(
                f"{folder / file} lacks {stored}: {error}; download the checkpoint again"
            ) from error


def _open_weights(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"weights {path} cannot be read: {error}; safetensors files are accepted: download the checkpoint again"
        ) from error


def _fetch(folder: Path, files: list[str]) -> None:
    """Downloads those of `files` that are missing, if `folder` is the local copy of a hub repository."""
    missing = [file for file in files if not (folder / file).is_file()]
    # <cache>/models--owner--name/snapshots/<revision>: the same revision again, so that weights fit the configuration.
    if missing and folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        model = folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        _download(model, folder.name, missing)
