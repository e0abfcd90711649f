"""Which model answers: a digest of everything in a checkpoint that its texts depend on.

The fingerprint of a store follows the vision part alone; two checkpoints that differ in their language models share it.
"""

from __future__ import annotations

import hashlib

from echoprune.models import checkpoint
from echoprune.sources import content_id

_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def answering_digest(model: str) -> str:
    """16 hex digits that follow configuration, tokenizer, chat template and weights of `model`, not its path.

    Of a weight file its size and 3 MiB of its content are looked at, so that 15 GB take no time; weights that are cut into
    other files are another model. Weights of a hub repository are downloaded first. Raises ModelError.
    """
    folder = checkpoint.find_checkpoint(model)
    checkpoint.fetch_weights(folder)
    paths = [folder / name for name in _FILES if (folder / name).is_file()]
    paths += sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {content_id(path)}\n".encode())
    return digest.hexdigest()[:16]
