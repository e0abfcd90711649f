"""The model in training: how a batch goes through it, its losses, its optimiser, its state on disk."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.reference.clips import Batch
from benchmarks.reference.muon import Muon
from benchmarks.reference.pace import Pace
from benchmarks.reference.pictures import draw
from benchmarks.reference.quicken import quicken
from benchmarks.reference.recipe import FUNCTION_WORDS, Recipe
from benchmarks.reference.truth import IGNORED, TRUTHS
from echoprune.models import find_family, model_settings
from echoprune.models.encoder import PatchLayout
from echoprune.models.qwen_vision import tokens_of as qwen_tokens
from echoprune.scene import COLOURS, DIRECTIONS, SHAPES

STATE, ALIGNMENT = "state.pt", "alignment.pt"
_BACKGROUND_WEIGHT = 0.05
# Words for what TRUTHS number from 1 on.
_WORDS = (tuple(COLOURS), SHAPES, ("top", "bottom"), ("left", "right"))


class Learner:
    """The model in training, its optimiser, and how a batch goes through it."""

    def __init__(self, folder: Path, recipe: Recipe, device: torch.device) -> None:
        import transformers  # noqa: PLC0415

        self.folder, self.recipe, self.device = folder, recipe, device
        _, self.family = find_family(str(folder))
        config = transformers.AutoConfig.from_pretrained(folder)
        model_class = getattr(transformers, self.family.weights_class)
        self.model = model_class(config).to(device, torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.layout = model_settings(str(folder)).layout
        self.placeholder = getattr(config, "video_token_id", None) or config.video_token_index
        quicken(self.model)

        def ids_of(words: Sequence[str]) -> torch.Tensor:
            ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
            split = [word for word, found in zip(words, ids, strict=True) if len(found) != 1]
            if split:
                raise ValueError(f"the tokenizer cuts {split} into pieces")
            return torch.tensor(ids, device=device)[:, 0]

        # As they stand within a question, and as they begin an answer.
        self.named_ids = [
            (truth, ids_of([mark + word for word in names]))
            for truth, names in enumerate(_WORDS)
            for mark in (" ", "")
        ]
        self.other_ids = ids_of(FUNCTION_WORDS)
        dim = model_settings(str(folder)).dim
        self.background = torch.nn.Parameter(torch.randn(len(self.named_ids), dim, device=device) * 0.02)
        self.ways = torch.nn.Parameter(torch.randn(1 + len(DIRECTIONS), dim, device=device) * 0.02)
        self.scale = torch.nn.Parameter(torch.tensor(math.log(10.0), device=device))
        matrices = matrices_of(self.model)
        others = [
            weight for weight in self.model.parameters() if all(weight is not each for each in matrices)
        ]
        plain = [
            *(weight for weight in others if weight.ndim <= 1),
            self.background,
            self.ways,
            self.scale,
        ]
        tables = [weight for weight in others if weight.ndim > 1]
        self.weights = [*matrices, *tables, *plain]
        self.optimisers = {
            "matrices": Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay),
            "others": torch.optim.AdamW(
                [
                    {"params": tables, "weight_decay": recipe.weight_decay},
                    {"params": plain, "weight_decay": 0.0},
                ],
                lr=recipe.learning_rate,
                betas=(0.9, 0.98),
                fused=device.type == "cuda",
            ),
        }

    def step(self, batch: Batch, part: float, *, read: bool = True) -> dict[str, float]:
        """Takes one step at `part` of the recipe's rates; returns its losses, nothing unless `read`, which waits for the device."""
        peaks = {"matrices": self.recipe.matrix_rate, "others": self.recipe.learning_rate}
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = part * peaks[name]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            answered, alignment, _ = self.losses(batch)
        weights = batch.weights.to(self.device, non_blocking=True)
        answer_loss = (answered * weights).sum() / weights.sum()
        loss = answer_loss + self.recipe.alignment * alignment
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimiser in self.optimisers.values():
            optimiser.step()
        return {"answer_loss": answer_loss.item(), "alignment_loss": alignment.item()} if read else {}

    def frames(self, batch: Batch) -> torch.Tensor:
        """uint8 (B, F, H, W, 3) frames of the clips of `batch`."""
        drawn = draw(batch.pictures, self.device)
        return drawn.view(len(batch.ids), -1, *drawn.shape[1:])

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(M,) losses of the ids of answers, that of the alignment, and (M,) bool: which of those ids were right."""
        move = {"device": self.device, "non_blocking": True}
        ids, positions, block, labels, asked = (
            tensor.to(**move)
            for tensor in (batch.ids, batch.positions, batch.block, batch.labels, batch.asked)
        )
        tokens, maps = self.tokens(self.frames(batch))
        embedded = self.model.get_input_embeddings()(ids)
        visual = ids == self.placeholder
        if self.family.name == "llava_onevision":
            newline = self.model.model.image_newline.expand(len(ids), 1, -1)
            placed = torch.cat([tokens, newline.to(tokens.dtype)], dim=1)
        else:
            placed = tokens
        embedded = embedded.masked_scatter(visual[..., None], placed.to(embedded.dtype))
        # What all clips of the batch begin with is plainly causal; `_shared_prefix` masks the rows after it.
        shared = int((batch.block == 0).all(0).int().cumprod(0).sum())
        order = torch.arange(ids.shape[1], device=self.device)
        later = order[shared:, None]
        same = (block[:, shared:, None] == block[:, None]) | (block[:, None] == 0)
        # Padding sees itself: a row without any would be NaN.
        seen = ((later >= order) & same & (block[:, None] >= 0)) | (later == order)
        # Of numbers, made once: each layer made its own of one of truths, for every head, in a tenth of the step.
        mask = torch.zeros(seen.shape, dtype=dtype_of(self.device), device=self.device)
        mask = mask.masked_fill_(~seen, float("-inf"))
        more: dict[str, Any] = {}
        if maps is not None:
            more = {"visual_pos_masks": visual, "deepstack_visual_embeds": list(maps.flatten(1, 2))}
        states = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=mask[:, None],
            position_ids=positions if len(positions) > 1 else positions[0],
            use_cache=False,
            **more,
        ).last_hidden_state
        # By index: how many a mask of the device holds is not known here before all of the above has run.
        logits = self.model.lm_head(states.flatten(0, 1)[asked]).float()
        wanted = labels.flatten()[asked]
        answered = F.cross_entropy(logits, wanted, reduction="none")
        alignment = self.alignment(tokens, batch.truth.to(**move))
        return answered, alignment, logits.argmax(-1) == wanted

    def tokens(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T * N, D) visual tokens of uint8 `frames` (B, F, H, W, 3), and (layers, B, T * N, D) deepstack maps or None."""
        clips = len(frames)
        frames = as_stored(frames.flatten(0, 1))
        if isinstance(self.layout, PatchLayout):
            grid = qwen_tokens(self.model.model.visual, self.layout, frames)
            dim = grid.tokens.shape[-1]
            maps = (
                None
                if grid.deepstack is None
                else grid.deepstack.reshape(len(grid.deepstack), clips, -1, dim)
            )
            return grid.tokens.reshape(clips, -1, dim), maps
        from echoprune.models.llava_onevision import library_states, library_tokens, tokens_of  # noqa: PLC0415

        inner = self.model.model
        pixels = F.interpolate(
            frames.permute(0, 3, 1, 2).float(),
            size=(self.layout.side, self.layout.side),
            mode="bicubic",
            antialias=True,
        )
        pixels = pixels.round().clamp(0, 255).permute(0, 2, 3, 1)
        states = partial(library_states, inner.vision_tower, self.model.config.vision_feature_layer)
        tokens = partial(library_tokens, inner.multi_modal_projector)
        grid = tokens_of(states, tokens, self.layout, pixels)
        return grid.tokens.reshape(clips, -1, grid.tokens.shape[-1]), None

    def alignment(self, tokens: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The mean loss of naming what each token shows by its cosine to the embeddings of words, ways by a matrix."""
        unit = F.normalize(tokens.float(), dim=-1).flatten(0, 1)
        table = self.model.get_input_embeddings().weight.float()
        scale = self.scale.exp().clamp(max=30.0)
        flat = truth.transpose(0, 1).flatten(1)
        total = _mean_loss(
            scale * unit @ self.ways.T, flat[-1], torch.ones(len(self.ways), device=self.device)
        )
        for index, (named, ids) in enumerate(self.named_ids):
            words = torch.cat([self.background[index : index + 1], table[ids], table[self.other_ids]])
            logits = scale * (unit @ F.normalize(words, dim=-1).T)
            weight = torch.ones(len(words), device=self.device)
            if TRUTHS[named] in ("colour", "shape"):
                weight[0] = _BACKGROUND_WEIGHT
            total = total + _mean_loss(logits, flat[named], weight)
        return total / 4

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """By kind of question, and "all": the mean loss, and the share right, of a `batch` that was not learnt from.

        With teacher forcing: a question counts as right if every id of its answer is.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            answered, _, right = self.losses(batch)
        clip, at = batch.asked // batch.ids.shape[1], batch.asked % batch.ids.shape[1]
        questions: dict[tuple[int, int], tuple[str, list[float], list[bool]]] = {}
        rows = zip(
            clip.tolist(), batch.block[clip, at].tolist(), answered.tolist(), right.tolist(), strict=True
        )
        for number, question, loss, good in rows:
            kind = batch.kinds[number][question - 1]
            found = questions.setdefault((number, question), (kind, [], []))
            found[1].append(loss)
            found[2].append(good)
        losses: dict[str, list[float]] = defaultdict(list)
        shares: dict[str, list[float]] = defaultdict(list)
        for kind, of_ids, goods in questions.values():
            for name in (kind, "all"):
                losses[name].append(sum(of_ids))
                shares[name].append(float(all(goods)))
        return _means(losses), _means(shares)

    def save(self, pace: Pace, step: int, *, finished: bool) -> None:
        """Writes all that the next call needs."""
        state = {
            "step": step,
            "pace": asdict(pace),
            "finished": finished,
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimisers": {name: each.state_dict() for name, each in self.optimisers.items()},
            "alignment": self._alignment_state(),
        }
        unfinished = self.folder / (STATE + ".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.folder / STATE)

    def load(self) -> tuple[Pace, int, bool] | None:
        """The pace, the number of steps and whether the run was finished, as saved; None where there is no state."""
        path = self.folder / STATE
        if not path.exists():
            return None
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self._load_alignment(state["alignment"])
        return Pace(**state["pace"]), int(state["step"]), bool(state["finished"])

    def start_from(self, folder: Path) -> None:
        """Takes the weights of the checkpoint in `folder`, and what its alignment learnt if that is there."""
        from safetensors.torch import load_file  # noqa: PLC0415

        weights = load_file(folder / "model.safetensors", device=str(self.device))
        found = self.model.load_state_dict(weights, strict=False)
        if found.unexpected_keys or set(found.missing_keys) - {"lm_head.weight"}:
            raise ValueError(f"the weights in {folder} are not of this model")
        if (folder / ALIGNMENT).exists():
            self._load_alignment(torch.load(folder / ALIGNMENT, map_location=self.device, weights_only=True))

    def export(self) -> None:
        """Writes model.safetensors in bf16, tied weights once, and beside it what `start_from` needs of the alignment."""
        from safetensors.torch import save_file  # noqa: PLC0415

        weights = {
            name: tensor.to("cpu", torch.bfloat16).contiguous()
            for name, tensor in self.model.state_dict().items()
        }
        weights.pop("lm_head.weight", None)
        unfinished = self.folder / "model.unfinished"
        save_file(weights, unfinished, metadata={"format": "pt"})
        unfinished.replace(self.folder / "model.safetensors")
        torch.save(self._alignment_state(), self.folder / ALIGNMENT)

    def _alignment_state(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name).detach() for name in ("background", "ways", "scale")}

    @torch.no_grad()
    def _load_alignment(self, state: dict[str, torch.Tensor]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)


def matrices_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights of products: neither embeddings, one of which the last product is, nor patches cut by a convolution."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embedded
    ]


def dtype_of(device: torch.device) -> torch.dtype:
    """What products are computed in."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _means(of: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(sum(values) / len(values), 4) for name, values in sorted(of.items())}


def _mean_loss(logits: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The weighted mean of the cross entropy where `truth` is known, 0 where it is nowhere."""
    known = weight[truth.clamp(min=0)] * (truth != IGNORED)
    total = F.cross_entropy(logits, truth, weight=weight, ignore_index=IGNORED, reduction="sum")
    return total / known.sum().clamp(min=1.0)


def as_stored(frames: torch.Tensor) -> torch.Tensor:
    """uint8 `frames` (F, H, W, 3) with colours at half the resolution, as video files hold them."""
    rgb = frames.permute(0, 3, 1, 2).float()
    weights = torch.tensor([0.299, 0.587, 0.114], device=frames.device).view(1, 3, 1, 1)
    brightness = (rgb * weights).sum(1, keepdim=True)
    colour = F.avg_pool2d(rgb - brightness, 2)
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
    return (brightness + colour).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
