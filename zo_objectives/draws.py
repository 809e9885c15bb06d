"""What of an objective is climbed: its value on what the model says, or its mean over what it might say.

    expected metric   the mean of an objective over `samples` draws: of generated text, or of options drawn with the
                      probabilities that the model gives them at `temperature`. Smooth where the metric itself is flat
    pass@k            the share of examples that one of k draws gets right, estimated from n >= k draws without bias as
                      1 - C(n - c, k) / C(n, k), where c of them are right (Chen et al. 2021, section 2.1)

All members of a step draw with the same random numbers, so two that say nearly the same draw nearly the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from zo_objectives.errors import InputError, RunError
from zo_objectives.language.generation import gumbel
from zo_objectives.language.objectives import Objective, Scored
from zo_objectives.language.outputs import Choices, Example, Outputs

Floats = NDArray[np.float64]

RIGHT = 1.0  # the least reward of a draw that counts as right


@dataclass(frozen=True)
class Signal:
    """How many draws, at what temperature options are drawn (None: the likeliest is taken), and k of pass@k, if wanted."""

    samples: int = 1
    temperature: float | None = None
    pass_at: int | None = None

    def check(self, objective: Objective, draws: bool) -> None:
        """Raises InputError where it means nothing: `draws` says whether outputs are drawn at all."""
        if not draws and (self.samples > 1 or self.pass_at is not None):
            raise InputError(
                f"samples={self.samples}: every draw would be the same. Give a temperature, as in --set temperature=0.7."
            )
        if self.pass_at is not None and self.pass_at > self.samples:
            raise InputError(f"pass_at={self.pass_at} needs at least as many draws: samples={self.pass_at} or more.")
        if self.pass_at is not None and objective.samples is None:
            raise InputError(
                f"pass_at={self.pass_at}: objective {objective.name!r} is one number for a whole batch, and pass@k asks of"
                " every draw whether it is right. Take a reward, or a builtin such as exact_match."
            )

    def drawn(self, outputs: Choices, examples: Sequence[Example], key: tuple[int, int]) -> Choices:
        """Options drawn with their probabilities at the temperature: predictions are the draws."""
        assert self.temperature is not None
        width = outputs.loglikelihoods.shape[1]
        noise = np.stack([gumbel(key, example.id, 0, width) for example in examples])
        return Choices(outputs.loglikelihoods / np.float32(self.temperature) + noise)

    def value(self, objective: Objective, draws: Sequence[Outputs], examples: Sequence[Example]) -> Scored:
        """The signal from one member's draws."""
        return self.values(objective, [[outputs] for outputs in draws], examples)[0]

    def values(self, objective: Objective, draws: Iterable[Iterable[Outputs]], examples: Sequence[Example]) -> list[Scored]:
        """The signal of every member, from draws [samples][members]."""
        if self.pass_at is not None:
            return self._passes(objective, draws, examples)
        scores = [objective.scores(members, examples) for members in draws]
        return scores[0] if len(scores) == 1 else [_mean(of_member) for of_member in zip(*scores, strict=True)]

    def of_examples(
        self, objective: Objective, draws: Sequence[Sequence[Outputs]], examples: Sequence[Example]
    ) -> Floats | None:
        """The signal of every example alone, [members, examples], from draws [samples][members]; nan where a reward does not
        apply, None for a metric of the whole batch. The mean over examples is what `values` says."""
        if objective.samples is None:
            return None
        if self.pass_at is not None:
            return self._chances(objective, draws, examples)
        found: Floats = np.mean([[_applied(objective, said, examples) for said in members] for members in draws], axis=0)
        return found

    def _passes(self, objective: Objective, draws: Iterable[Iterable[Outputs]], examples: Sequence[Example]) -> list[Scored]:
        return [Scored(float(row.mean())) for row in self._chances(objective, draws, examples)]

    def _chances(self, objective: Objective, draws: Iterable[Iterable[Outputs]], examples: Sequence[Example]) -> Floats:
        """pass@k of every example, [members, examples]."""
        assert objective.samples is not None and self.pass_at is not None
        rewards = [[_rewards(objective, member, examples) for member in members] for members in draws]
        right = (np.array(rewards, dtype=np.float64) >= RIGHT).sum(axis=0)  # [members, examples]
        n, k = self.samples, self.pass_at
        chance: Floats = np.array([1 - comb(n - c, k) / comb(n, k) for c in range(n + 1)])
        found: Floats = chance[right]
        return found


def _applied(objective: Objective, outputs: Outputs, examples: Sequence[Example]) -> Floats:
    """Each example's reward, nan where it does not apply. Raises Failure as the objective does."""
    assert objective.samples is not None
    try:
        found = objective.samples(outputs, examples)
        objective.checked(float(np.mean([v for v in found if v is not None] or [0.0])), outputs, examples)
    except (InputError, RunError):
        raise
    except Exception as error:
        raise objective.failed(error, outputs, examples) from error
    return np.array(found, dtype=np.float64)


def _rewards(objective: Objective, outputs: Outputs, examples: Sequence[Example]) -> list[float]:
    """Each example's reward, finite; one that does not apply is not right. Raises Failure as the objective does."""
    objective(outputs, examples)
    assert objective.samples is not None
    return [0.0 if reward is None else float(reward) for reward in objective.samples(outputs, examples)]


def _mean(scores: Sequence[Scored]) -> Scored:
    """The mean of scores, and of the parts that all of them have."""
    names = set.intersection(*(set(score.parts) for score in scores))
    parts = {name: float(np.mean([score.parts[name] for score in scores])) for name in sorted(names)}
    return Scored(float(np.mean(scores)), parts)
