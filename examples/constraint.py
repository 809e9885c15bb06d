"""Token F1 as far as answers stay short: a constraint, and what it is made of."""

from zo_objectives.language.objectives import Limit, resolve, subject_to
from zo_objectives.language.outputs import Example, Generations

said = Generations(["the Norman conquest of England", "Paris"])
wanted = [Example(0, "What?", {}, targets=("Norman conquest",)), Example(1, "Where?", {}, targets=("Paris",))]

short = subject_to(resolve("squad_f1"), Limit(resolve("words"), 2))
score = short(said, wanted)
assert score == resolve("squad_f1 subject to words <= 2")(said, wanted)  # the same, for --objective
print(f"{short.name}: {score:.3f}")
