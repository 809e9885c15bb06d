"""Results of an objective that was declared pure, remembered by output and example, for as long as the process lives.

Of a reward every sample is remembered, with what it logged for that sample; what it logs for a whole batch (log_metric) is
not, since a batch is not asked as a whole. Of a metric the score of a whole batch of outputs is.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from zo_objectives.language.culprits import take
from zo_objectives.language.objective import Examples, Logged, Needs, Objective, Pending, Scored, mean_of_samples
from zo_objectives.language.outputs import Generations, Outputs

Begin = Callable[[str, Outputs, Examples], Callable[[], Any]]  # ("score" or "samples", outputs, examples) -> its result
Sample = tuple[float | None, dict[str, Any]]


@dataclass
class Memory:
    """The results known of `objective`, the oldest forgotten beyond `size`; `begin` where it scores elsewhere."""

    plain: Objective
    begin: Begin | None = None
    size: int = 1 << 18
    known: OrderedDict[Hashable, tuple[Any, Any]] = field(default_factory=OrderedDict)
    means: Sequence[str] = ()

    def objective(self) -> Objective:
        """The objective that asks here first."""
        if self.plain.samples is None:
            start = None if self.begin is None else self.begin_score
            return replace(self.plain, score=self.score, bind=None, start=start)
        start = None if self.begin is None else self.begin_mean
        score = partial(mean_of_samples, self.plain.name, self.samples)
        return replace(self.plain, score=score, samples=self.samples, bind=None, start=start)

    def keep(self, key: Hashable, value: Any, examples: Any) -> None:
        """Remembers `value`. The examples are kept with it: a key has their identity."""
        self.known[key] = (value, examples)
        if len(self.known) > self.size:
            self.known.popitem(last=False)

    # Of a whole batch

    def score(self, outputs: Outputs, examples: Examples) -> float:
        return self.begin_score(outputs, examples)()

    def begin_score(self, outputs: Outputs, examples: Examples) -> Pending:
        key = (tuple(map(id, examples)), _content(outputs))
        if key in self.known:
            found: Scored = self.known[key][0]
            return lambda: found
        pending = self.begin("score", outputs, examples) if self.begin else None

        def result() -> Scored:
            value = pending() if pending else self.plain.score(outputs, examples)
            score = self.plain.checked(value, outputs, examples)
            self.keep(key, score, tuple(examples))
            return score

        return result

    # Of samples

    def samples(self, outputs: Outputs, examples: Examples) -> list[float | None]:
        return self.begin_samples(outputs, examples)()

    def begin_mean(self, outputs: Outputs, examples: Examples) -> Pending:
        pending = self.begin_samples(outputs, examples)

        def result() -> Scored:
            value = mean_of_samples(self.plain.name, lambda *_: pending(), outputs, examples)
            return self.plain.checked(value, outputs, examples)

        return result

    def begin_samples(self, outputs: Outputs, examples: Examples) -> Callable[[], list[float | None]]:
        """Asks for the pairs that are not known."""
        content = self._contents(outputs)
        keys = [(id(e), c) for e, c in zip(examples, content, strict=True)]
        first = {k: i for i, k in reversed(list(enumerate(keys))) if k not in self.known}
        rows = sorted(first.values())
        known: dict[Hashable, Sample] = {k: self.known[k][0] for k in keys if k in self.known}
        some, of = take(outputs, rows), [examples[i] for i in rows]
        pending = self.begin("samples", some, of) if self.begin and rows else None

        def result() -> list[float | None]:
            if rows:
                assert self.plain.samples is not None
                found = pending() if pending else self.plain.samples(some, of)
                for i, sample in zip(rows, self._taken_apart(found), strict=True):
                    known[keys[i]] = sample
                    self.keep(keys[i], sample, examples[i])
            return self._joined([known[k] for k in keys])

        return result

    def _contents(self, outputs: Outputs) -> Sequence[Hashable]:
        if self.plain.needs is Needs.PREDICTION:
            return list(outputs.predictions)
        return [_content(take(outputs, [i])) for i in range(len(outputs))]

    def _taken_apart(self, found: Sequence[float | None]) -> list[Sample]:
        columns = found.columns if isinstance(found, Logged) else {}
        if isinstance(found, Logged):
            self.means = found.means
        fitting = {name: values for name, values in columns.items() if len(values) == len(found)}
        return [(value, {name: values[i] for name, values in fitting.items()}) for i, value in enumerate(found)]

    def _joined(self, samples: Sequence[Sample]) -> Logged:
        names = dict.fromkeys(name for _, row in samples for name in row)
        return Logged((v for v, _ in samples), {}, {n: [row.get(n) for _, row in samples] for n in names}, self.means)


def _content(outputs: Outputs) -> Hashable:
    """All that outputs hold, to be looked up by."""
    if isinstance(outputs, Generations):
        return tuple(outputs.texts)
    return tuple(v.tobytes() for v in vars(outputs).values() if isinstance(v, np.ndarray))
