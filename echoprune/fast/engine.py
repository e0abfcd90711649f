"""Greedy text for many prompts at once: slots are filled from a queue, and filled again as soon as a text has ended.

Each step adds one token to every sequence. On a GPU a step is one CUDA graph for each number of slots in use, rounded up
to a power of two; how long the sequences are is data of the graph, so that nothing is captured again as they grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from echoprune.fast.language import Cache, LanguageModel
from echoprune.models.prompt import Prompt

# Prompts are prefilled together up to so many tokens: products of 16,384 rows run at the machine's rate.
PACK_TOKENS = 16384
CAPACITY_MULTIPLE = 512


# Settings of a generation_config.json that change greedy text.
_LIBRARY_ONLY = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "penalty_alpha",
    "sequence_bias",
    "stop_strings",
    "watermarking_config",
)


@dataclass(frozen=True)
class Rules:
    """How a token is chosen and when a text ends.

    `ended`: ids after which it ends. `suppressed`: ids never chosen. `penalty`: logits of ids that the prompt or the
    text has are divided by it where positive, else multiplied (1: not).
    """

    max_new_tokens: int
    ended: frozenset[int]
    suppressed: tuple[int, ...] = ()
    penalty: float = 1.0

    @classmethod
    def of(cls, settings: Any, ended: frozenset[int], suppressed: tuple[int, ...]) -> Rules | None:
        """The rules of the library's generation configuration `settings`; None where it asks for more than they say."""
        without_effect: tuple[Any, ...] = (None, 0, 1.0, False, [], {}, "")
        if any(getattr(settings, name, None) not in without_effect for name in _LIBRARY_ONLY):
            return None
        penalty = float(settings.repetition_penalty or 1.0)
        return cls(int(settings.max_new_tokens), ended, suppressed, penalty)


class _State:
    """What changes from step to step, at fixed places of memory: what each slot holds, and the cache."""

    def __init__(self, model: LanguageModel, slots: int, capacity: int, rules: Rules) -> None:
        device = model.device
        self.cache = Cache(model, slots, capacity)
        self.rules = rules
        self.ids, self.positions, self.seen, self.new = torch.zeros(
            (4, slots), dtype=torch.int64, device=device
        )
        words = len(model.embedding)
        self.barred = torch.zeros(words, dtype=torch.bool, device=device)
        self.barred[list(rules.suppressed)] = True
        self.said = torch.zeros(
            (slots if rules.penalty != 1.0 else 0, words), dtype=torch.bool, device=device
        )
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def fits(self, slots: int, capacity: int, rules: Rules) -> bool:
        mine = self.rules
        same = (mine.suppressed, mine.penalty) == (rules.suppressed, rules.penalty)
        return same and self.cache.slots >= slots and self.cache.capacity >= capacity

    def choose(self, logits: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """The likeliest ids (rows,) of `logits` (rows, V), which are changed; `slots` (rows,) are then said to have them."""
        penalty = self.rules.penalty
        if penalty != 1.0:
            said = self.said[slots]
            logits = torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        chosen = logits.masked_fill(self.barred, -torch.inf).argmax(-1)
        if penalty != 1.0:
            # Not by assigning True, which copies it from the CPU: a graph cannot do that.
            self.said.index_put_((slots, chosen), torch.ones_like(chosen, dtype=torch.bool))
        return chosen


class Engine:
    """Generates with the library's `model`; keeps its cache and its graphs for the next call that fits in them."""

    def __init__(self, model: Any) -> None:
        self.model = LanguageModel(model)
        self._state: _State | None = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        settings: Any,
        *,
        ended: frozenset[int],
        suppress: tuple[int, ...],
        slots: int,
    ) -> list[list[int]] | None:
        """The new ids after each of `prompts`, in their order, the one of `ended` that ends a text included.

        `settings`: the library's generation configuration; None comes back where it asks for more than `Rules` say.
        `slots`: sequences at a time, at most. Raises torch.OutOfMemoryError where their cache does not fit.
        """
        rules = Rules.of(settings, ended, suppress)
        return None if rules is None else self.follow(prompts, rules, slots=slots)

    @torch.no_grad()
    def follow(self, prompts: Sequence[Prompt], rules: Rules, *, slots: int) -> list[list[int]]:
        """The same by `rules`."""
        if not prompts:
            return []
        capacity = max(len(prompt) for prompt in prompts) + rules.max_new_tokens
        state = self._state_for(min(slots, len(prompts)), capacity, rules)
        limit = min(slots, len(prompts), state.cache.slots)
        waiting = deque(range(len(prompts)))
        texts: list[list[int]] = [[] for _ in prompts]
        running: dict[int, int] = {}
        while waiting or running:
            free = [slot for slot in range(limit) if slot not in running]
            while waiting and free:
                for slot, index, token in self._filled(state, prompts, waiting, free):
                    texts[index].append(token)
                    running[slot] = index
                running = self._without_ended(state, running, texts, rules)
                free = [slot for slot in range(limit) if slot not in running]
            if running:
                tokens = self._step(state, max(running) + 1)
                for slot, index in running.items():
                    texts[index].append(tokens[slot])
                running = self._without_ended(state, running, texts, rules)
        return texts

    @torch.no_grad()
    def first_logits(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(prompts, V) float32 logits of the first token after each prompt."""
        capacity = max(len(prompt) for prompt in prompts)
        state = self._state_for(1, capacity, Rules(max_new_tokens=1, ended=frozenset()))
        return torch.cat([self.model.prefill([prompt], [0], state.cache) for prompt in prompts])

    def _state_for(self, slots: int, capacity: int, rules: Rules) -> _State:
        if self._state is None or not self._state.fits(slots, capacity, rules):
            # Before the new one is made: both would not fit.
            self._state = None
            rounded = -(-capacity // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
            self._state = _State(self.model, _power_of_two(slots), rounded, rules)
        self._state.new.zero_()
        self._state.seen.zero_()
        return self._state

    def _filled(
        self, state: _State, prompts: Sequence[Prompt], waiting: deque[int], free: Sequence[int]
    ) -> list[tuple[int, int, int]]:
        """The next prompts prefilled into free slots: slot, index and first new id of each."""
        taken: list[int] = []
        tokens = 0
        while waiting and len(taken) < len(free):
            tokens += len(prompts[waiting[0]])
            if taken and tokens > PACK_TOKENS:
                break
            taken.append(waiting.popleft())
        slots = list(free[: len(taken)])
        pack = [prompts[index] for index in taken]
        logits = self.model.prefill(pack, slots, state.cache)
        place = torch.tensor(slots, device=logits.device)
        if state.rules.penalty != 1.0:
            for slot, prompt in zip(slots, pack, strict=True):
                state.said[slot] = False
                state.said[slot, prompt.input_ids.to(logits.device)] = True
        chosen = state.choose(logits, place)
        state.ids[place] = chosen
        state.seen[place] = torch.tensor([len(prompt) for prompt in pack], device=place.device)
        state.positions[place] = torch.tensor(
            [_next_position(prompt) for prompt in pack], device=place.device
        )
        state.new[place] = 1
        return list(zip(slots, taken, chosen.tolist(), strict=True))

    def _without_ended(
        self, state: _State, running: dict[int, int], texts: Sequence[list[int]], rules: Rules
    ) -> dict[int, int]:
        """`running` without the slots whose texts have ended, which then hold nothing."""

        def ended(index: int) -> bool:
            return len(texts[index]) >= rules.max_new_tokens or texts[index][-1] in rules.ended

        done = [slot for slot, index in running.items() if ended(index)]
        if not done:
            return running
        place = torch.tensor(done, device=state.new.device)
        state.new[place] = 0
        state.seen[place] = 0
        return {slot: index for slot, index in running.items() if slot not in done}

    def _step(self, state: _State, used: int) -> list[int]:
        """One more token in the first `used` slots: their new ids."""
        count = min(_power_of_two(used), state.cache.slots)
        if self.model.device.type != "cuda":
            self._advance(state, count)
        else:
            if count not in state.graphs:
                state.graphs[count] = self._captured(state, count)
            state.graphs[count].replay()
        found: list[int] = state.ids[:count].tolist()
        return found

    def _advance(self, state: _State, count: int) -> None:
        part = slice(0, count)
        new, slots = state.new[part], torch.arange(count, device=state.new.device)
        logits = self.model.step(state.ids[part], state.positions[part], state.seen[part], new, state.cache)
        state.ids[part] = state.choose(logits, slots)
        state.seen[part] += new
        state.positions[part] += new

    def _captured(self, state: _State, count: int) -> torch.cuda.CUDAGraph:
        """The graph of one step of `count` slots; what the steps before capturing changed is put back."""
        kept = [each.clone() for each in (state.ids, state.positions, state.seen, state.said)]

        def put_back() -> None:
            for place, value in zip((state.ids, state.positions, state.seen, state.said), kept, strict=True):
                place.copy_(value)

        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._advance(state, count)
                put_back()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Capturing runs nothing, so that there is nothing to put back after it.
        with torch.cuda.graph(graph):
            self._advance(state, count)
        return graph


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _next_position(prompt: Prompt) -> int:
    """The position of the first new token; text has one position on all axes."""
    last = prompt.position_ids[:, -1].tolist()
    if len(set(last)) != 1:
        raise ValueError(f"a prompt must end in text, its last positions are {last}")
    return int(last[0]) + 1
