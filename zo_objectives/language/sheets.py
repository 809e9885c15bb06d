"""Sheets of examples: how a model reads options, label words at a mask, options beside a text, and targets.

Every option is tokenised together with its prompt, so merges across the boundary are right. Scores of options are

    sum         log-likelihoods, of what follows the longest common prefix of all options (what they share tells nothing)
    mean        log-likelihoods per token of the option (MeZO's for large models)
    calibrated  log-likelihoods less those behind a content-free prompt: surface form competition (Holtzman et al. 2021)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zo_objectives.errors import InputError
from zo_objectives.language.hf import Form, LanguageModel, encode, label_of
from zo_objectives.language.outputs import Example
from zo_objectives.language.sheet import Ids, Read, Sheet, common_prefix, continued, make_sheet

Scoring = Literal["sum", "mean", "calibrated"]


@dataclass(frozen=True)
class Reader:
    """A model, how it scores options, and whether prompts that are too long lose their beginning or are an error."""

    lm: LanguageModel
    scoring: Scoring = "sum"
    cut: bool = False

    def choices(self, examples: Sequence[Example], *, exact: bool = False) -> Sheet:
        """The sheet of all options. Raises InputError for what cannot be told apart or does not fit."""
        return make_sheet([self._options(e, exact) for e in examples], exact=exact)

    def targets(self, examples: Sequence[Example], delimiter: str, end: str) -> Sheet:
        """The sheet of each example's first target between `delimiter` and `end`, as teacher forcing reads it."""
        self.lm.check_causal("be scored on targets")
        return make_sheet([continued(*self._sequences(e, e.prompt, (delimiter + e.targets[0] + end,))) for e in examples])

    def prompt(self, example: Example, new_tokens: int) -> Ids:
        """The prompt's tokens, with room for what is generated."""
        self.lm.check_causal("generate text")
        ids, _ = encode(self.lm, example.prompt)
        return self._fitted([ids], example, new_tokens, f"{new_tokens} new tokens")[0][0]

    def length(self, example: Example, new_tokens: int, delimiter: str) -> int:
        """How many tokens an example takes at most, with its options or its first target or what is generated."""
        ends = example.options or tuple(delimiter + t for t in example.targets[:1])
        texts = [example.prompt, *([] if self.lm.bidirectional else [example.prompt + end for end in ends])]
        return max(len(encode(self.lm, text)[0]) for text in texts) + (0 if example.options else new_tokens)

    def _options(self, example: Example, exact: bool) -> list[Read]:
        reads = self._reads(example, example.prompt, exact)
        if self.scoring != "calibrated":
            return reads
        if example.blank is None:
            raise InputError(
                f"Example {example.id} has no content-free prompt to calibrate with. Give the task zo.calibration."
            )
        return reads + [read._replace(weight=-read.weight) for read in self._reads(example, example.blank, exact)]

    def _reads(self, example: Example, prompt: str, exact: bool) -> list[Read]:
        """What is read of every option behind a prompt, in it, or beside it."""
        match self.lm.form:
            case Form.MASKED:
                return self._at_mask(example, prompt)
            case Form.ENCODER:
                return self._beside(example, prompt)
        full, starts = self._sequences(example, prompt, example.options)
        if self.scoring == "sum" and not exact:
            starts = [common_prefix(full)] * len(full)
        mean = [1 / (len(ids) - start) for ids, start in zip(full, starts, strict=True)]
        return continued(full, starts, mean if self.scoring == "mean" else None)

    def _sequences(self, example: Example, prompt: str, continuations: Sequence[str]) -> tuple[list[Ids], list[int]]:
        """Each continuation's whole token sequence and where its own tokens begin."""
        encoded = [encode(self.lm, prompt + c) for c in continuations]
        full = [ids for ids, _ in encoded]
        for i, ids in enumerate(full):
            if (j := full.index(ids)) != i:
                raise InputError(
                    f"Example {example.id}: options {continuations[j]!r} and {continuations[i]!r} are the same tokens"
                    f" for {self.lm.name}. Choose other words in doc_to_choice."
                )
        starts = [next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids) - 1) for ids, ends in encoded]
        if 0 in starts:
            raise InputError(
                f"Example {example.id}: nothing comes before the option. Give the task a prompt in doc_to_text."
            )
        full, lost = self._fitted(full, example, 0, "option" if example.options else "target")
        return full, [max(1, start - lost) for start in starts]

    def _at_mask(self, example: Example, prompt: str) -> list[Read]:
        """Every option's label word at the one mask."""
        ids, _ = encode(self.lm, prompt)
        words = [self._word(option, example) for option in example.options]
        (ids,), _ = self._fitted([ids], example, 0, "mask")
        places = [i for i, token in enumerate(ids) if token == self.lm.tokenizer.mask_token_id]
        if len(places) != 1:
            raise InputError(
                f"Example {example.id} has {len(places)} masks ({self.lm.mask}), and must have one: {prompt[-60:]!r}."
            )
        return [Read(option, ids, places[0], word) for option, word in enumerate(words)]

    def _beside(self, example: Example, prompt: str) -> list[Read]:
        """Every option's row at the state of the whole text, which is an encoder's at any place."""
        ids, _ = encode(self.lm, prompt.strip())
        (ids,), _ = self._fitted([ids], example, 0, "text")
        texts = [label_of(option) for option in example.options]
        if len({encode(self.lm, text)[0] for text in texts}) < len(texts):  # also where only their capitals differ
            raise InputError(
                f"Example {example.id}: two of the options {list(example.options)} are the same text for {self.lm.name}."
                " Choose other words in doc_to_choice."
            )
        return [Read(option, ids, 0, self.lm.model.number(text)) for option, text in enumerate(texts)]

    def _word(self, option: str, example: Example) -> int:
        tokens = self.lm.tokenizer(" " + option.strip(), add_special_tokens=False)["input_ids"]
        if len(tokens) != 1 or tokens[0] == self.lm.tokenizer.unk_token_id:
            pieces = self.lm.tokenizer.convert_ids_to_tokens(tokens)
            raise InputError(
                f"Example {example.id}: the label word {option.strip()!r} is {pieces} for {self.lm.name}, not one token."
                " Choose words of one token in zo.words."
            )
        return int(tokens[0])

    def _fitted(self, full: list[Ids], example: Example, room: int, what: str) -> tuple[list[Ids], int]:
        """Sequences no longer than the context less `room`, and how many tokens each lost behind the first."""
        excess = max(map(len, full)) + room - self.lm.context
        if excess <= 0:
            return full, 0
        if not self.cut:
            raise InputError(
                f"Example {example.id} is {max(map(len, full)) + room} tokens long with its {what}, and {self.lm.name} takes"
                f" {self.lm.context}: {example.prompt[:60]!r}... Shorten the prompt, take a model with a longer context, cut"
                " such prompts (--set long_prompts=cut) or leave such examples out (--set long_prompts=drop)."
            )
        if min(map(len, full)) <= excess + 1:
            raise InputError(f"Example {example.id}: its {what} leaves no room for a prompt in {self.lm.context} tokens.")
        return [shortened(ids, excess, self.lm.tokenizer.mask_token_id) for ids in full], excess


def shortened(ids: Ids, excess: int, mask: int | None) -> Ids:
    """`ids` without `excess` tokens: those behind the first, or those before the last where a mask is among the former."""
    if mask is not None and mask in ids[: 1 + excess]:
        return ids[: len(ids) - 1 - excess] + ids[-1:]
    return ids[:1] + ids[1 + excess :]
