"""In-context learning: answered examples of train before every prompt, as many as fit the model's context."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zo_objectives.errors import InputError
from zo_objectives.language import data
from zo_objectives.language.hf import LanguageModel, encode
from zo_objectives.language.outputs import Example
from zo_objectives.language.sheets import Reader


@dataclass(frozen=True)
class Demonstrations:
    """Answered examples in the order in which they are shown, and how many tokens each takes with its delimiter."""

    lm: LanguageModel
    form: data.Form
    shown: tuple[Example, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, lm: LanguageModel, form: data.Form, train: Sequence[Example], count: int, seed: int) -> "Demonstrations":
        """`count` examples of train, drawn by the seed; the first ones where the task says so. Raises InputError."""
        spec = form.spec
        if spec.output_type != "multiple_choice" and spec.doc_to_target is None:
            raise InputError(f"Task {spec.task!r} has no targets that demonstrations could show.")
        chosen = list(range(min(count, len(train))))
        if spec.fewshot_config.sampler != "first_n":
            chosen = np.random.default_rng([seed & 0xFFFFFFFF, 1]).permutation(len(train))[:count].tolist()
        shown = tuple(train[i] for i in chosen)
        extra = len(encode(lm, "")[0])
        lengths = tuple(len(encode(lm, answered(lm, form, e) + spec.fewshot_delimiter)[0]) - extra for e in shown)
        return cls(lm, form, shown, lengths)

    def before(self, splits: data.Splits) -> tuple[data.Splits, str]:
        """The splits with demonstrations before every prompt, and how many fitted in words."""
        reader, spec, counts = Reader(self.lm), self.form.spec, list[int]()

        def with_them(example: Example) -> Example:
            others = [(e, n) for e, n in zip(self.shown, self.lengths, strict=True) if e is not example]
            length = reader.length(example, spec.generation_kwargs.max_gen_toks, spec.target_delimiter)
            fitting = int(np.searchsorted(np.cumsum([n for _, n in others]), self.lm.context - length, side="right"))
            texts = [answered(self.lm, self.form, e) for e, _ in others[:fitting]]
            counts.append(fitting)
            return replace(example, prompt=self._joined(texts, example))

        parts = {name: tuple(with_them(e) for e in getattr(splits, name)) for name in data.SPLITS}
        tested = counts[-len(splits.test) :]
        note = (
            f"{np.mean(tested):.1f} of {len(self.shown)} demonstrations fit before a test prompt of {self.lm.name}"
            f" ({min(tested)} to {max(tested)})."
        )
        return replace(splits, train=parts["train"], validation=parts["validation"], test=parts["test"]), note

    def _joined(self, texts: Sequence[str], example: Example) -> str:
        said = self.form.description(example.row, "")
        shown = "".join(text + self.form.spec.fewshot_delimiter for text in texts)
        return said + shown + example.prompt.removeprefix(said)


def answered(lm: LanguageModel, form: data.Form, example: Example) -> str:
    """An example with its answer, without the task's description."""
    text = example.prompt.removeprefix(form.description(example.row, ""))
    if lm.mask is not None:
        return text.replace(lm.mask, example.options[example.label])
    answer = example.options[example.label] if example.options else form.spec.target_delimiter + example.targets[0]
    return text + answer
