"""The model that stores, runs and members are tried on, and ways to look at it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zo_objectives.search.weights import Weights

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
IDS = torch.tensor([[1, 2, 3], [0, 6, 2]])
WeightsOf = Callable[[nn.Module], Weights]


class Toy(nn.Module):
    """Embedding, linear layer, a parameter and a buffer of its own, and a head tied to the embedding; weights by arithmetic.

    Integers [B, T] below 7 in, [B, T, 7] out.
    """

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


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, bit for bit."""
    return {n: v.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, v in model.state_dict().items()}


@torch.no_grad()
def score(model: nn.Module, t: int) -> float:
    """A score of a `Toy` with ties, as metrics have: a multiple of 1/256 that depends on the step's batch."""
    return round(float(model(IDS + t % 2 * (IDS < 6)).float().square().mean()) * 256) / 256
