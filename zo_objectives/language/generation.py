"""Generation: continuations of prompts, greedy or sampled, and the text in them.

Sampling adds Gumbel noise to the logits and takes the largest (Gumbel-max): the noise of a token depends on the draw, the
example and the position alone. So all members of a step sample with common random numbers, and what is said to a prompt does
not depend on what else is in the batch.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.passes import Padded, pad, prompt_batches
from zo_objectives.language.sheet import Ids
from zo_objectives.language.tasks import GenerationKwargs


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn: temperature, then top_k, then top_p as transformers has them; `key` says which draw it is."""

    temperature: float
    top_k: int | None
    top_p: float | None
    key: tuple[int, int]

    def perturbed(self, logits: Tensor, examples: Sequence[int], position: int) -> Tensor:
        """Scores [rows, vocabulary] whose largest are the drawn tokens; row i continues example `examples[i]`."""
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        scores = logits.float() / self.temperature
        nothing: Any = None
        if self.top_k:
            scores = TopKLogitsWarper(self.top_k)(nothing, scores)
        if self.top_p is not None and self.top_p < 1:
            scores = TopPLogitsWarper(self.top_p)(nothing, scores)
        noise = {e: torch.from_numpy(gumbel(self.key, e, position, logits.shape[-1])) for e in set(examples)}
        return scores + torch.stack([noise[e] for e in examples]).to(scores.device)


def gumbel(key: tuple[int, int], example: int, position: int, size: int) -> NDArray[np.float32]:
    """Gumbel noise, a function of (seed, draw), example and position alone: by numpy's Philox, on every device the same."""
    seed, draw = key
    bits = np.random.Philox(key=[seed & 0xFFFFFFFF, draw], counter=[0, position, example, 0])
    uniform = np.maximum(np.random.Generator(bits).random(size), np.finfo(np.float64).tiny)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def sampler_of(kwargs: GenerationKwargs, temperature: float | None, key: tuple[int, int]) -> Sampler | None:
    """How tokens are drawn: at `temperature`, or where None as the task's file says; None: the likeliest."""
    own = kwargs.temperature if kwargs.do_sample else 0.0
    chosen = own if temperature is None else temperature
    return Sampler(chosen, kwargs.top_k, kwargs.top_p, key) if chosen > 0 else None


def stop_tokens(lm: LanguageModel, until: Sequence[str]) -> list[int]:
    """Token ids that end a generation: end-of-text and every token that contains a stop string of one character."""
    ends = {lm.tokenizer.eos_token_id} - {None}
    single = [u for u in until if len(u) == 1]
    if single:
        texts = lm.tokenizer.batch_decode([[i] for i in range(len(lm.tokenizer))])
        ends |= {i for i, text in enumerate(texts) if any(u in text for u in single)}
    return sorted(ends)


def text_of(lm: LanguageModel, tokens: Sequence[int], until: Sequence[str]) -> str:
    """The text of generated tokens, up to the first stop string."""
    text: str = lm.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((at for u in until if (at := text.find(u)) >= 0), default=len(text))]


@contextmanager
def _no_settings(model: Any) -> Iterator[None]:
    """While open, `generate` fills in none of the model's own settings, such as a repetition penalty: greedy is greedy."""
    own, model.generation_config = model.generation_config, type(model.generation_config)()
    try:
        yield
    finally:
        model.generation_config = own


def generate(
    lm: LanguageModel,
    prompts: Sequence[Ids],
    *,
    new_tokens: int,
    stops: Sequence[int],
    sampler: Sampler | None = None,
    examples: Sequence[int] = (),
) -> list[list[int]]:
    """Continuations, at most `new_tokens` tokens each, a stop token included where one came.

    `examples` are the numbers of the prompts, which a `sampler` needs.
    """
    result: list[list[int]] = [[] for _ in prompts]
    for group in prompt_batches(lm, prompts):
        batch = pad(prompts, group, lm.padding, lm.device, left=True)
        numbers = [examples[r] for r in group] if sampler else []
        said = continuations(lm, batch, new_tokens=new_tokens, stops=stops, sampler=sampler, examples=numbers)
        for r, tokens in zip(group, said, strict=True):
            result[r] = tokens
    return result


def continuations(
    lm: LanguageModel,
    batch: Padded,
    *,
    new_tokens: int,
    stops: Sequence[int],
    sampler: Sampler | None = None,
    examples: Sequence[int] = (),
) -> list[list[int]]:
    """Continuations of the rows of a left-padded batch, as `generate` gives them."""
    from transformers import GenerationConfig, LogitsProcessorList

    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        pad_token_id=lm.padding,
        eos_token_id=list(stops) or None,
        use_cache=True,
    )
    width = batch.ids.shape[1]

    def draw(ids: Tensor, scores: Tensor) -> Tensor:
        assert sampler is not None
        return sampler.perturbed(scores, examples, ids.shape[1] - width)

    processors = LogitsProcessorList([draw] if sampler else [])
    given = {"input_ids": batch.ids, "attention_mask": batch.mask, "generation_config": config}
    with _no_settings(lm.model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")  # peft's, behind virtual tokens
        out = lm.model.generate(**given, logits_processor=processors)
    said: list[list[int]] = out[:, width:].tolist()
    stop = set(stops)
    return [tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stop), len(tokens))] for tokens in said]
