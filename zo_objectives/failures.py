"""What a failing objective does to a run: it stops, or the step is left out, written down and counted."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zo_objectives.errors import RunError, SkipStep
from zo_objectives.language.objectives import Failure
from zo_objectives.results import write_atomically
from zo_objectives.search.estimators import Probe

IN_A_ROW = 20  # skipped steps that end a run: what always fails is not skipped but broken


@dataclass
class Skipping:
    """skipped.jsonl of a run: a line for each step that was left out, with the objective, the example and the reason."""

    path: Path
    keep: int  # steps that are known to have been taken or skipped; later lines are dropped

    def __post_init__(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        known = [json.loads(line) for line in lines]
        self.steps = [row["step"] for row in known if row["step"] <= self.keep]
        if lines:
            write_atomically(self.path, "".join(f"{line}\n" for line in lines[: len(self.steps)]))

    def evaluator(
        self, evaluate: Callable[[Sequence[Probe], int], Sequence[float]]
    ) -> Callable[[Sequence[Probe], int], Sequence[float]]:
        """The same evaluator, in which a failure leaves the step out. Raises RunError for many in a row."""

        def guarded(probes: Sequence[Probe], t: int) -> Sequence[float]:
            try:
                return evaluate(probes, t)
            except Failure as failure:
                self._note(t + 1, failure)
                raise SkipStep(str(failure)) from failure

        return guarded

    def _note(self, step: int, failure: Failure) -> None:
        self.steps.append(step)
        line = {"step": step, "objective": failure.objective, "example": failure.example, "reason": str(failure)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if self.steps[-IN_A_ROW:] == list(range(step - IN_A_ROW + 1, step + 1)):
            raise RunError(f"{IN_A_ROW} steps in a row were left out, the last since: {failure}") from failure

    def note(self, steps: int) -> str | None:
        """How many steps were left out, in words; None where none was."""
        return f"{len(self.steps)} of {steps} steps were left out: see {self.path.name}." if self.steps else None
