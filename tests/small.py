"""What the search side's tests share: a small model with weights made by arithmetic, and ways to look at it and run it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hypothesis import settings
from torch import Tensor, nn

from zo_objectives import rules
from zo_objectives.estimators import Probe, Spsa
from zo_objectives.geometry import Dense, Geometry
from zo_objectives.journal import Header, Journal
from zo_objectives.loop import climb, sequential
from zo_objectives.noise import Law
from zo_objectives.rules import UpdateRule
from zo_objectives.weights import Weights

FIXED = settings(derandomize=True, max_examples=30, deadline=None, database=None)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STORES = ("inference", "master")
LAWS = tuple(Law)
CPU = torch.device("cpu")
IDS = torch.tensor([[1, 2, 3], [0, 6, 2]])


class Tiny(nn.Module):
    """Embedding, linear layer, a parameter and a buffer of its own, and a head tied to the embedding."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.emb = nn.Embedding(7, 4)
        self.lin = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.emb.weight
        self.temperature = nn.Parameter(torch.empty(()))
        self.register_buffer("shift", torch.full((7,), 0.25))
        for row, parameter in enumerate(self.parameters()):
            count = torch.arange(parameter.numel()).view(parameter.shape)
            parameter.data = ((count * 37 + row * 11 + 5) % 101 - 50).double().div(60).float()
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.lin(self.emb(ids)))) * self.temperature + self.shift
        return out


def tuned_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def sgd(rate: float = 0.02, weight_decay: float = 0.01) -> UpdateRule:
    return rules.sgd(rules.constant(rate, 1), weight_decay)


def adam(rate: float = 0.02, weight_decay: float = 0.01) -> UpdateRule:
    return rules.adam(rules.constant(rate, 1), weight_decay)


RULES: dict[str, Callable[..., UpdateRule]] = {"sgd": sgd, "adam": adam}


def weights_of(
    model: nn.Module, store: str = "inference", geometry: Geometry | None = None, rule: UpdateRule | None = None
) -> Weights:
    return Weights(model, tuned_names(model), geometry=geometry or Dense(), rule=rule or sgd(), store=store)


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, bit for bit."""
    return {n: v.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, v in model.state_dict().items()}


def score(model: nn.Module, t: int) -> float:
    """A score with ties, as metrics have: a multiple of 1/256 that depends on the step's batch."""
    return round(float(model(IDS + t % 2 * (IDS < 6)).float().square().mean()) * 256) / 256


def header_of(weights: Weights, seed: int = 3, directions: int = 2) -> Header:
    return {"seed": seed, "directions": directions, "base": weights.fingerprint(), "config": {"a": {"b": 1}}}


def run(weights: Weights, model: nn.Module, path: Path, steps: int, directions: int = 2) -> list[tuple[float, ...]]:
    """Climbs, or goes on, with the journal at `path`; the scores of the steps that this call took.

    `weights` must be as the run began, as they are in a new process.
    """
    evaluate = sequential(weights, lambda t: score(model, t))
    estimator = Spsa(0.1, directions)
    with Journal.open(path, header_of(weights, directions=directions)) as journal:
        return [s.scores for s in climb(weights, estimator, evaluate, steps=steps, seed=3, journal=journal)]


def seen_by_modules(weights: Weights, model: nn.Module, probe: Probe) -> list[tuple[str, Tensor]]:
    """(tuned name, what a holder of it computed with at `probe`) for every module that holds a tuned tensor."""
    seen: list[tuple[str, Tensor]] = []

    def look(name: str, attribute: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.append((name, module._parameters[attribute].detach().clone()))

    handles = [
        module.register_forward_hook(look(entry.name, attribute))  # runs before the store's own, which is younger
        for entry in weights.tuned
        for module, attribute in entry.owners
    ]
    with weights.at(probe):
        model(IDS)
    for handle in handles:
        handle.remove()
    return seen


def correlation(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).mean())


def concatenated(geometry: Geometry, keys: Sequence[int], sizes: dict[str, int]) -> Tensor:
    """[len(keys), all elements]: the directions in several tensors side by side."""
    return torch.cat([geometry.directions(keys, n, range(size), CPU) for n, size in sizes.items()], dim=1)
