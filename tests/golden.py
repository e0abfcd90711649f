"""What the library's own processors make of one small made-up video: run where torchvision is, stored for the tests.

    python -m tests.golden [FOLDER]

writes `<family>_processor.npz` to tests/data/golden. The processors need torchvision, which the tests must do without.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parent / "data" / "golden"
QUESTION = "What moved, and when?"
# Seven frames, so that the last cell of the Qwen families is filled up; sides that are no multiples of a token's.
FRAMES, HEIGHT, WIDTH = 7, 130, 215
# Every so many values of the flattened pixel values are stored.
STRIDE = 997
# As if taken from a video of 24 frames a second, twice a second.
SOURCE_FPS, STEP = 24.0, 12


def video() -> npt.NDArray[np.uint8]:
    """(F, H, W, 3): gradients that move, with a fine pattern on them."""
    t, y, x, c = np.ogrid[:FRAMES, :HEIGHT, :WIDTH, :3]
    return (((x * (3 + c) + y * 5 + t * 17) // 4 + (x * y) // (31 + 7 * c)) % 256).astype(np.uint8)


def official(family: str) -> dict[str, Any]:
    """The arrays to store: pixel values by stride, their shape, the prompt's text and ids, and times."""
    import torch
    import transformers

    from echoprune.models.tiny import write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_checkpoint(family, Path(scratch) / "model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        kind = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "llava_onevision": "LlavaOnevision"}[
            family
        ]
        frames_kind = {"qwen2_5_vl": "Qwen2VL"}.get(family, kind)
        pictures = {"qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen2VL"}.get(family, kind)
        # The adapters write the tokens that processors look for under the names of the published tokenizers.
        more = {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}
        processor = getattr(transformers, f"{kind}Processor")(
            image_processor=getattr(transformers, f"{pictures}ImageProcessor").from_pretrained(folder),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, f"{frames_kind}VideoProcessor").from_pretrained(folder),
            chat_template=tokenizer.chat_template,
            **(more if family == "llava_onevision" else {}),
        )
        content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        metadata = {
            "fps": SOURCE_FPS,
            "total_num_frames": FRAMES * STEP,
            "frames_indices": [STEP * k for k in range(FRAMES)],
        }
        clip = torch.from_numpy(video()).permute(0, 3, 1, 2).contiguous()
        options: dict[str, Any] = {"do_sample_frames": False, "return_tensors": "pt"}
        if family != "llava_onevision":
            options["video_metadata"] = [metadata]
        made = processor(text=[chat], videos=[clip], **options)
    pixels = made["pixel_values_videos"].float().numpy()
    found: dict[str, Any] = {
        "pixel_shape": pixels.shape,
        "pixels": pixels.reshape(-1)[::STRIDE],
        "input_ids": made["input_ids"][0].numpy(),
        "versions": [transformers.__version__, torch.__version__],
    }
    for name in ("video_grid_thw", "second_per_grid_ts"):
        if name in made:
            found[name] = np.asarray(made[name])
    return found


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    folder.mkdir(parents=True, exist_ok=True)
    for family in ("qwen2_5_vl", "qwen3_vl", "llava_onevision"):
        np.savez_compressed(folder / f"{family}_processor.npz", **official(family))


if __name__ == "__main__":
    main()
