"""Two processes that share the probes out take the steps of one process, bit for bit, and end together when one fails."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from zo_objectives.errors import RunError
from zo_objectives.search import journal, rules
from zo_objectives.search.estimators import Evaluator, Probe, Spsa
from zo_objectives.search.geometry import Dense
from zo_objectives.search.journal import Journal, header_for
from zo_objectives.search.loop import climb
from zo_objectives.search.members import distributed, sequential
from zo_objectives.search.weights import Weights
from zo_objectives.testing import Toy, score

WORLD, STEPS = 2, 5
ESTIMATOR = Spsa(0.1, 3)


def weights_of(model: Toy) -> Weights:
    names = [n for n, _ in model.named_parameters()]
    return Weights(model, names, geometry=Dense(), rule=rules.sgd(lambda t: 0.02))


def climbed(path: Path, *, rank: int = 0, fault: str = "") -> str:
    """Climbs with the journal at `path` and returns the final fingerprint; on rank 1 something may go wrong in step 2."""
    model = Toy()
    weights = weights_of(model)
    inner = sequential(weights, lambda t: score(model, t))

    def evaluate(probes: Sequence[Probe], t: int) -> Sequence[float]:
        if (rank, t, fault) == (1, 2, "raises"):
            raise ValueError("no such luck")
        if (rank, t, fault) == (1, 2, "loses a score"):
            return inner(probes, t)[1:]
        return inner(probes, t)

    def watched(share: Evaluator) -> Evaluator:
        def spoil(probes: Sequence[Probe], t: int) -> Sequence[float]:
            if (rank, t, fault) == (1, 2, "differs"):
                weights.load({n: v + 1 for n, v in weights.state_dict().items()})
            return share(probes, t)

        return spoil

    with Journal.open(path, header_for(weights, ESTIMATOR, 3)) as log:
        for _ in climb(
            weights, ESTIMATOR, watched(distributed(evaluate, weights, every=2)), steps=STEPS, seed=3, journal=log
        ):
            pass
    return weights.fingerprint()


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD)
    (folder / f"fingerprint-{rank}").write_text(climbed(folder / f"{rank}.zoj", rank=rank))
    for fault in ("raises", "loses a score", "differs"):
        try:
            climbed(folder / f"{fault}-{rank}.zoj", rank=rank, fault=fault)
        except RunError as error:
            (folder / f"{fault}-{rank}").write_text(str(error))
    dist.destroy_process_group()


def test_without_a_process_group_it_is_the_evaluator_itself(tmp_path: Path) -> None:
    model = Toy()
    weights = weights_of(model)
    evaluate = sequential(weights, lambda t: score(model, t))
    probes = ESTIMATOR.probes(5)
    assert distributed(evaluate, weights)(probes, 0) == evaluate(probes, 0)


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    alone = climbed(tmp_path / "alone.zoj")
    spawn(worker, (tmp_path,), nprocs=WORLD)
    for rank in range(WORLD):
        assert (tmp_path / f"fingerprint-{rank}").read_text() == alone
        assert (tmp_path / f"{rank}.zoj").read_bytes() == (tmp_path / "alone.zoj").read_bytes()
        for fault, message in (
            ("raises", "Rank 1 failed in step 2"),
            ("loses a score", "Rank 1 failed in step 2"),
            ("differs", "The weights of rank 1 differ from those of rank 0 in step 2"),
        ):
            assert (tmp_path / f"{fault}-{rank}").read_text().startswith(message)
            assert len(journal.read(tmp_path / f"{fault}-{rank}.zoj")[1]) == 2
    assert "no such luck" in (tmp_path / "raises-1").read_text()
