"""What only a CUDA device can tell: the CPU's bits, there. `python -m pytest -m gpu`."""

from pathlib import Path

import pytest
import torch
from small import DTYPES, RULES, Tiny, weights_of
from torch import Tensor

from zo_objectives.search import journal, noise
from zo_objectives.search.estimators import Probe
from zo_objectives.search.geometry import Dense, Geometry, Leaf, LowRank
from zo_objectives.search.noise import Law
from zo_objectives.search.rounding import round_into

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda")
GOLDEN = Path(__file__).parent / "golden" / "v1.zoj"


@pytest.mark.parametrize("law", Law)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", [0, 1, 128, 1000])
def test_noise_has_the_cpus_bits(law: Law, dtype: torch.dtype, start: int) -> None:
    def moved(device: torch.device) -> Tensor:
        out = torch.empty(300_001, dtype=dtype, device=device)
        noise.axpy(law, out, torch.linspace(-1, 1, 300_001).to(device), 5, 8, 0.3, start)
        return out.cpu()

    assert torch.equal(moved(CUDA), moved(torch.device("cpu")))
    span = range(start, start + 1000)
    here = noise.directions(law, [5, 6], 8, span, torch.device("cpu"))
    assert torch.equal(noise.directions(law, [5, 6], 8, span, CUDA).cpu(), here)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_low_rank_noise_has_the_cpus_bits(rank: int) -> None:
    leaf, geometry = Leaf("w", (37, 91)), LowRank(rank)
    here = geometry.directions([5, 6], leaf, range(37 * 91), torch.device("cpu"))
    assert torch.equal(geometry.directions([5, 6], leaf, range(37 * 91), CUDA).cpu(), here)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounding_has_the_cpus_bits(dtype: torch.dtype) -> None:
    values = torch.linspace(-1, 1, 100_001) ** 7

    def rounded(device: torch.device) -> Tensor:
        out = torch.empty(len(values), dtype=dtype, device=device)
        round_into(out, values.to(device), 5, 8)
        return out.cpu()

    assert torch.equal(rounded(CUDA), rounded(torch.device("cpu")))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("store", ["inference", "master"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", [Dense(), Dense(Law.GAUSSIAN), LowRank(3)])
def test_a_journal_replays_to_the_cpus_bits(geometry: Geometry, dtype: torch.dtype, store: str, rule: str) -> None:
    """A run's journal made on one device leads to the same weights on the other."""
    header, steps = journal.read(GOLDEN)
    fingerprints = []
    for device in ("cpu", "cuda"):
        weights = weights_of(Tiny(dtype).to(device), store, geometry, RULES[rule]())
        journal.replay(header | {"base": weights.fingerprint()}, steps, weights)
        fingerprints.append(weights.fingerprint())
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize("store", ["inference", "master"])
def test_a_probe_on_the_device_restores_every_bit(store: str) -> None:
    model = Tiny(torch.bfloat16).to(CUDA)
    weights = weights_of(model, store)
    before = weights.fingerprint()
    for key in range(20):
        with weights.at(Probe(key, 0.1)):
            pass
    assert weights.fingerprint() == before
