"""Members together are what they are one after another (law 5), or they are refused by name; nothing in between."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.dlpack import from_dlpack, to_dlpack

from zo_objectives import adapters, subsets
from zo_objectives.batched import BatchedScorer
from zo_objectives.errors import InputError, RunError
from zo_objectives.language import passes
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.outputs import Choices, Example, Generations, Likelihoods, Outputs
from zo_objectives.language.tasks import TaskSpec
from zo_objectives.scoring import REST, ForwardScorer, Kind, Pool
from zo_objectives.search import rules
from zo_objectives.search.estimators import Probe, Spsa
from zo_objectives.search.geometry import Dense, Factors, Geometry, Leaf, LowRank, Masked, Scaled
from zo_objectives.search.layers import by_layer
from zo_objectives.search.members import batched, deviation, members, sequential, verify
from zo_objectives.search.weights import Weights
from zo_objectives.testing import BOUND, IDS, Run, Toy, bits, check_members
from zo_objectives.trunk import Trunk

PROBES = (Probe(11, 0.1), Probe(11, -0.1), REST, Probe(12, 0.1), Probe(13, 0.02))


def weights_of(model: nn.Module, geometry: Geometry | None = None, names: Sequence[str] | None = None) -> Weights:
    names = names or [n for n, _ in model.named_parameters()]
    return Weights(model, names, geometry=geometry or LowRank(2), rule=rules.sgd(lambda t: 0.1), layers=by_layer(names))


def on(model: nn.Module, inputs: Tensor) -> Run:
    return lambda count: model(inputs.repeat(count, *[1] * (inputs.dim() - 1)))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.eval().requires_grad_(False)


def states(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


# Any module


class Functional(nn.Module):
    """A function of a matrix [6, 6] and a vector [6], as modules' own code may call it."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.matrix, self.vector, self.function = nn.Parameter(torch.empty(6, 6)), nn.Parameter(torch.empty(6)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.matrix, self.vector)


SUPPORTED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w, v: functional.linear(x, w, v),
    "linear by keyword": lambda x, w, v: functional.linear(input=x, weight=w, bias=v),
    "states @ matrix.T": lambda x, w, v: x @ w.T + v,
    "states @ matrix": lambda x, w, v: torch.matmul(x, w) * v,
    "transpose": lambda x, w, v: v + x.matmul(w.transpose(-1, -2)) @ w.t() @ w.mT,
    "a cast to the same dtype": lambda x, w, v: functional.linear(x, w.to(x.dtype), v.float()),
    "layer_norm": lambda x, w, v: functional.layer_norm(x @ w, (6,), v, None) + functional.layer_norm(x, (6,), None, v),
    "rms_norm": lambda x, w, v: functional.rms_norm(x @ w, (6,), v, 1e-6),
    "as in Gemma": lambda x, w, v: x @ w * (1.0 + v.float()),
    "as in Nemotron": lambda x, w, v: functional.layer_norm(x @ w, (6,), v + 1, v, 1e-5),
    "states as the matrix": lambda x, w, v: (x @ w).type_as(w) * v.size(0) + v,
    "heads": lambda x, w, v: (x @ w).unflatten(-1, (2, 3)).transpose(1, 2).reshape(x.shape) * v,
    "what only asks": lambda x, w, v: (
        x.to(w.device, v.dtype) @ w * v + torch.zeros_like(v) + w.new_zeros(6) + w.shape[0] - 6
    ),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_functions_of_members(name: str) -> None:
    model = randomised(Functional(SUPPORTED[name]))
    for x in (states(3, 6), states(3, 4, 6)):
        if x.dim() == 3 or "heads" not in name:
            check_members(weights_of(model), PROBES, 3, on(model, x))
    check_members(weights_of(model, names=["vector"]), PROBES, 3, on(model, states(3, 4, 6)))
    check_members(weights_of(model, names=["matrix"]), PROBES, 3, on(model, states(3, 4, 6)))


def test_conv1d_of_gpt2() -> None:
    from transformers.pytorch_utils import Conv1D

    model = randomised(nn.Sequential(Conv1D(5, 6), nn.GELU(), Conv1D(2, 5)))
    check_members(weights_of(model), PROBES, 3, on(model, states(3, 6)))
    embedded = randomised(nn.Sequential(nn.Embedding(7, 6), Conv1D(5, 6)))
    check_members(weights_of(embedded), PROBES, 2, on(embedded, IDS))


def test_a_multilayer_perceptron() -> None:
    layers = (nn.Linear(6, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 4, bias=False), nn.RMSNorm(4))
    model = randomised(nn.Sequential(*layers))
    for rank in (1, 3):
        check_members(weights_of(model, LowRank(rank)), PROBES, 5, on(model, states(5, 6)))


def test_an_embedding_tied_to_the_head_has_one_noise() -> None:
    model = Toy()
    check_members(weights_of(model), PROBES, 2, on(model, IDS))


def test_noise_is_drawn_once_for_each_key() -> None:
    drawn: list[tuple[str, list[int]]] = []

    class Counted(LowRank):
        def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
            drawn.append((leaf.name, list(keys)))
            return super().factors(keys, leaf, device)

    model = Toy()
    with members(weights_of(model, Counted(2)), PROBES, 2):
        for _ in range(3):
            model(IDS.repeat(5, 1))
    assert sorted(drawn) == [("emb.weight", [11, 12, 13]), ("lin.weight", [11, 12, 13])]


def test_probes_that_do_nothing_pass_the_trial() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 6)))
    model.get_parameter("1.weight").data.zero_()
    verify(weights_of(model, names=["0.weight"]), PROBES, 3, on(model, states(3, 6)))


def test_groups_gains_and_members_at_rest() -> None:
    model = randomised(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    gains = {n: 0.3 + i for i, (n, _) in enumerate(model.named_parameters())}
    weights = weights_of(model, Scaled(LowRank(1), gains))
    probes = [Probe(1, 0.1, 0), Probe(1, 0.1, 1), Probe(2, -0.1, 1), REST, Probe(1, 0.1)]
    check_members(weights, probes, 2, on(model, states(2, 6)))
    rest = model(states(2, 6))
    with members(weights, probes, 2):
        torch.testing.assert_close(model(states(2, 6).repeat(5, 1))[6:8], rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("store", ["inference", "master"])
def test_sixteen_bits(dtype: torch.dtype, store: str) -> None:
    """W + s z is not rounded to 16 bits, so members are near, not equal: within a part of what a store's rounding does."""
    model = Toy(dtype)
    names = [n for n, _ in model.named_parameters()]
    weights = Weights(model, names, geometry=LowRank(2), rule=rules.sgd(lambda t: 0.1), store=store)
    found = deviation(weights, PROBES, 2, on(model, IDS))
    assert found.error < 0.05 * found.effect
    verify(weights, [p._replace(scale=p.scale / 100) for p in PROBES if p.scale], 2, on(model, IDS))


# What cannot be batched is refused


def hidden(tensor: Tensor) -> Tensor:
    """The same numbers by a way that torch's functions do not see."""
    return from_dlpack(to_dlpack(tensor))


REFUSED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str]] = {
    "another function": (lambda x, w, v: torch.einsum("ntd,md->ntm", x, w) + v, "einsum got parameter 'matrix'"),
    "in a list": (lambda x, w, v: torch.cat([w, w]).sum() + x + v, "cat got parameter 'matrix'"),
    "a row": (lambda x, w, v: x @ w + w[0] + v, "__getitem__ got parameter 'matrix'"),
    "detached": (lambda x, w, v: x @ w + v.detach(), "detach got parameter 'vector'"),
    "by its data": (lambda x, w, v: x @ w + v.data, "data.* got parameter 'vector'"),
    "in place": (lambda x, w, v: (x @ w).add_(v), "add_ got parameter 'vector'"),
    "as a state": (lambda x, w, v: x @ w + functional.linear(v, w), "linear got parameter 'vector', as a state"),
    "matrix @ states": (lambda x, w, v: w @ x.mT + v[0], "matmul got parameter 'matrix'"),
    "two at a time": (lambda x, w, v: x @ w + v * v, "mul got parameter 'vector', as a state"),
    "a matrix times states": (lambda x, w, v: x * w[None, 0] + v, "__getitem__"),
    "elementwise": (lambda x, w, v: x[:, :1] * w + v, "a matrix where members have vectors"),
    "a matrix in another dtype": (lambda x, w, v: x @ w.double().float() + v, "double got parameter 'matrix'"),
    "cast": (lambda x, w, v: (x.bfloat16() @ w.to(torch.bfloat16)).float() + v, "to got parameter 'matrix'"),
    "a vector as a matrix": (lambda x, w, v: x @ w @ v, "a vector where members have matrices"),
    "rows by number": (lambda x, w, v: x[torch.arange(12)].view(12, 4, 6) @ w + v, "picked by their numbers"),
    "fewer rows": (lambda x, w, v: x[1:] @ w + v, r"shape \[11, 4, 6\] where 4 members of 3 rows have \[12, ..., d\]"),
    "packed": (lambda x, w, v: x.flatten(0, 1) @ w + v, r"shape \[48, 6\] where 4 members of 3 rows have"),
    "rows behind": (lambda x, w, v: x.transpose(0, 1) @ w + v, r"shape \[4, 12, 6\]"),
    "out of sight": (lambda x, w, v: x @ hidden(w) + v, "did not use parameter 'matrix' in sight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_members_have_no_rule_for_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    model = randomised(Functional(function))
    weights, x = weights_of(model), states(12, 4, 6)
    before = bits(model)
    with pytest.raises(InputError, match=message + ".*Use members=sequential"), members(weights, PROBES[:4], 3):
        model(x)
    assert bits(model) == before
    with weights.at(PROBES[0]):  # nothing is left open
        functional.linear(x, model.matrix)


@pytest.mark.parametrize("geometry", [Dense(), Masked(LowRank(), {"matrix": torch.ones(36, dtype=torch.bool)})])
def test_dense_noise_in_a_matrix_is_refused(geometry: Geometry) -> None:
    model = randomised(Functional(SUPPORTED["linear"]))
    message = "Dense noise in a matrix shares nothing between members, and 'matrix'.*noise=low-rank or members=sequential"
    with pytest.raises(InputError, match=message), members(weights_of(model, geometry), PROBES, 3):
        pass
    check_members(weights_of(model, geometry, ["vector"]), PROBES, 3, on(model, states(3, 6)))


class Experts(nn.Module):
    """A mixture: each row goes to `each` of the experts, which see the rows that come to them, the first choices first."""

    def __init__(self, count: int, each: int) -> None:
        super().__init__()
        self.router, self.each = nn.Linear(6, count), each
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).topk(self.each, dim=-1).indices
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            _, rows = torch.where(number == chosen.T)
            out.index_add_(0, rows, expert(x[rows]))
        return out


@pytest.mark.parametrize(("count", "each"), [(3, 2), (2, 2)])
def test_experts_are_refused(count: int, each: int) -> None:
    """Also where all rows come to each expert, in another order."""
    model = randomised(Experts(count, each))
    with pytest.raises(InputError, match=r"'experts\.\d\.weight', with states"), members(weights_of(model), PROBES, 8):
        model(states(40, 6))
    if count > each:
        probes = [Probe(1, 1.0), Probe(2, 1.0)]
        check_members(weights_of(model, names=["router.weight"]), probes, 50, on(model, states(50, 6)))


class Shuffled(nn.Linear):
    """Rows come in another order, by functions that nobody looks at."""

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum(1).argsort()
        return super().forward(x.index_select(0, order)).index_select(0, order.argsort())


def test_rows_that_a_model_puts_in_another_order_are_found_out() -> None:
    model = randomised(Shuffled(6, 6))
    with pytest.raises(InputError, match="computes something else for them together"):
        verify(weights_of(model), PROBES[:2], 8, on(model, states(8, 6)))


def test_a_matrix_for_each_expert_is_refused() -> None:
    model = Functional(lambda x, w, v: x @ w + v)
    model.experts = nn.Parameter(torch.ones(2, 6, 6))
    with pytest.raises(InputError, match="'experts' has 3 dimensions"), members(weights_of(model), PROBES, 3):
        pass


class Positions(nn.Module):
    """Token and position embeddings, added as `shape` says."""

    def __init__(self, shape: Callable[[Tensor], Tensor], *, first: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions, self.shape, self.first = nn.Embedding(9, 6), nn.Embedding(9, 6), shape, first

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1])
        if self.first:
            place = self.positions(self.shape(positions))
            return self.tokens(ids) + place
        return self.tokens(ids) + self.positions(self.shape(positions))


def test_positions_that_all_rows_share() -> None:
    ids = states(3, 5).abs().long()
    model = randomised(Positions(lambda p: p[None]))
    check_members(weights_of(model), PROBES, 3, on(model, ids))
    for shape, first in ((lambda p: p, False), (lambda p: p[None], True), (lambda p: p[None, :2], False)):
        model = randomised(Positions(shape, first=first))
        with (
            pytest.raises(InputError, match=r"'positions.weight', with ids of shape"),
            members(weights_of(model), PROBES, 3),
        ):
            model(ids.repeat(5, 1))


def test_a_pooled_state_is_refused_once_rows_have_tokens() -> None:
    model = randomised(nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 2)))
    message = r"\[15, 30\] where 5 members of 3 rows have \[15, ..., d\] or \[75, d\]"
    with pytest.raises(InputError, match=message), members(weights_of(model), PROBES, 3):
        model(states(15, 5).abs().long())


def test_members_do_not_nest() -> None:
    model = randomised(nn.Linear(6, 6))
    weights = weights_of(model)
    with members(weights, PROBES, 3):
        for other in (members(weights, PROBES, 3), weights.at(PROBES[0])):
            with pytest.raises(RuntimeError, match="do not nest"), other:
                pass
        model(states(15, 6))
    with weights.at(PROBES[0]), pytest.raises(RuntimeError, match="do not nest"), members(weights, PROBES, 3):
        pass


def test_everything_is_back_after_an_exception() -> None:
    model = Toy()
    weights, before, rest = weights_of(model), bits(model), model(IDS)
    handle = model.lin.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), members(weights, PROBES, 2):
        model(IDS.repeat(5, 1))
    handle.remove()
    assert bits(model) == before and torch.equal(model(IDS), rest)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# Planted faults


class Unscaled(LowRank):
    """1 / sqrt(r) is missing where members share."""

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        found = super().factors(keys, leaf, device)
        return found and found._replace(left=found.left * self.rank**0.5)


class OneKey(LowRank):
    """All members get the first one's noise where they share."""

    def factors(self, keys: Sequence[int], leaf: Leaf, device: torch.device) -> Factors | None:
        return super().factors([keys[0]] * len(keys), leaf, device)


@pytest.mark.parametrize("geometry", [Unscaled(2), OneKey(2)])
def test_wrong_factors_are_found_out(geometry: Geometry) -> None:
    model = randomised(nn.Linear(6, 6))
    check_members(weights_of(model), PROBES, 3, on(model, states(3, 6)))
    with pytest.raises(AssertionError, match="differ"):
        check_members(weights_of(model, geometry), PROBES, 3, on(model, states(3, 6)))
    with pytest.raises(InputError, match="something else"):
        verify(weights_of(model, geometry), PROBES, 3, on(model, states(3, 6)))


def test_rows_in_another_order_are_found_out() -> None:
    model, x = randomised(nn.Linear(6, 6)), states(3, 6)

    def minor(count: int) -> Tensor:
        return model(x.repeat_interleave(count, 0)).unflatten(0, (3, count)).transpose(0, 1).flatten(0, 1)

    with pytest.raises(AssertionError, match="differ"):
        check_members(weights_of(model), PROBES, 3, minor)


# Evaluators


def squares(model: nn.Module, count: int) -> list[float]:
    return model(IDS.repeat(count, 1)).square().unflatten(0, (count, 2)).mean((1, 2, 3)).tolist()


@pytest.mark.parametrize("limit", [None, 1, 2, 7])
def test_batched_scores_are_sequential_scores(limit: int | None) -> None:
    model = Toy()
    weights = weights_of(model)
    together = batched(weights, lambda t, count: squares(model, count), rows=2, limit=limit)
    apart = sequential(weights, lambda t: squares(model, 1)[0])
    for probes in (Spsa(0.1, 3).probes(5), PROBES, ()):
        np.testing.assert_allclose(together(probes, 0), apart(probes, 0), rtol=1e-5)


def test_another_number_of_scores_is_an_error() -> None:
    model = Toy()
    with pytest.raises(RunError, match="3 scores for 5 members in step 7"):
        batched(weights_of(model), lambda t, count: squares(model, count)[:3], rows=2)(PROBES, 7)


# Language models


PROMPTS = ("the film is", "a good book, a bad book, a great", "Question: is it good? Answer:", "a", "1 + 2 =")
TEXT = TaskSpec(
    task="t",
    dataset_path="x",
    doc_to_text="text",
    doc_to_target="answer",
    generation_kwargs={"until": ["\n"], "max_gen_toks": 6},  # type: ignore[arg-type]
)
OPTIONS = TaskSpec(
    task="t", dataset_path="x", output_type="multiple_choice", doc_to_text="text", doc_to_choice="options", doc_to_target=0
)
ONE_TOKEN = (" good", " bad")
SEVERAL = (" good", " bad and the plot is good", " a great film")
MEMBERS = (Probe(11, 0.2), Probe(11, -0.2), REST, Probe(12, 0.2))


def pool_for(lm: LanguageModel, kind: Kind, options: Sequence[str] = SEVERAL) -> Pool:
    if kind is Kind.CHOICE:
        return Pool(lm, OPTIONS, tuple(tiny.choice(i, p, options[: 2 + i % 2]) for i, p in enumerate(PROMPTS)))
    targets = ("good", "film", "yes", "b", "3")
    return Pool(
        lm, TEXT, tuple(Example(i, p, {}, targets=(t,)) for i, (p, t) in enumerate(zip(PROMPTS, targets, strict=True)))
    )


def scorers(
    lm: LanguageModel, pool: Pool, tune: str, rank: int = 1, limit: int | None = None
) -> tuple[BatchedScorer, ForwardScorer]:
    subset = subsets.select(adapters.adapted(lm, tune), tune, [3, 5])
    weights = weights_of(lm.model, Scaled(LowRank(rank), subset.gains), subset.names)
    trunk = Trunk(lm, subset.cut) if subset.cut else None
    return BatchedScorer(pool, weights, trunk, limit), ForwardScorer(pool, weights, None)


def assert_same(found: Sequence[Outputs], expected: Sequence[Outputs]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, Generations):
            assert list(a.texts) == list(b.predictions)
        else:
            assert type(a) is type(b) and isinstance(b, Choices | Likelihoods)
            np.testing.assert_allclose(a.loglikelihoods, b.loglikelihoods, atol=BOUND)


def assert_told_apart(outputs: Sequence[Outputs]) -> None:
    seen = [str(o.texts if isinstance(o, Generations) else o.loglikelihoods) for o in outputs]
    assert len(set(seen)) == len(seen), "members should differ"


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("family", (*tiny.FAMILIES, *tiny.UNPLAIN))
def test_batched_members_say_what_sequential_members_say(family: str, kind: Kind) -> None:
    lm = tiny.make(family)
    pool = pool_for(lm, kind)
    together, apart = scorers(lm, pool, "all")
    found = together.outputs(kind, MEMBERS, np.array([4, 0, 1, 2]))
    assert_same(found, apart.outputs(kind, MEMBERS, np.array([4, 0, 1, 2])))
    assert_told_apart(found)


@pytest.mark.parametrize(
    "tune", ["norms", "layers:1-", "layers:2", "head", "norms+head", "lora:2", "pattern:(q_proj|c_attn)"]
)
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_whatever_is_tuned(family: str, tune: str) -> None:
    lm = tiny.make(family)
    kind = Kind.TEXT if tune in ("norms", "head") else Kind.CHOICE
    pool = pool_for(lm, kind, ONE_TOKEN if tune == "head" else SEVERAL)
    together, apart = scorers(lm, pool, tune, rank=2)
    everything = np.arange(len(pool.examples))
    assert_same(together.outputs(kind, MEMBERS, everything), apart.outputs(kind, MEMBERS, everything))
    assert together.trunk is None or kind is Kind.TEXT or len(together.trunk.kept) > 0


@pytest.mark.parametrize("kind", list(Kind))
def test_many_passes_and_parts_of_members(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.make("opt")
    pool = pool_for(lm, kind)
    everything = np.arange(len(pool.examples))
    together, apart = scorers(lm, pool, "all", limit=3)
    expected = apart.outputs(kind, MEMBERS, everything)
    spent = (pool.cost.forwards, pool.cost.examples, pool.cost.tokens)
    for tokens in (passes.MICRO_TOKENS, 40, 1):
        monkeypatch.setattr(passes, "MICRO_TOKENS", tokens)
        assert_same(together.outputs(kind, MEMBERS, everything), expected)
    assert (pool.cost.forwards, pool.cost.examples, pool.cost.tokens) == tuple(4 * n for n in spent)


def test_probes_at_rest_need_no_overlay() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    weights = tiny.weights(lm, subsets.select(lm, "all", []))  # dense
    everything = np.arange(len(pool.examples))
    together = BatchedScorer(pool, weights)
    assert_same(
        together.outputs(Kind.CHOICE, [REST], everything),
        ForwardScorer(pool, None, None).outputs(Kind.CHOICE, [REST], everything),
    )
    with pytest.raises(InputError, match="Dense noise in a matrix"):
        together.outputs(Kind.CHOICE, MEMBERS, everything)


def test_a_model_that_mixes_members_is_refused_before_it_is_scored() -> None:
    lm = tiny.make()
    pool = pool_for(lm, Kind.CHOICE)
    together, _ = scorers(lm, pool, "all")
    lm.model.model.norm.register_forward_hook(lambda module, inputs, output: output.flip(0))
    with pytest.raises(InputError, match="something else for them together"):
        together.outputs(Kind.CHOICE, MEMBERS, np.arange(3))
    assert pool.cost.forwards == 0


def test_mixtral_is_refused() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=50, num_local_experts=2)
    model: Any = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    names = [n for n, _ in model.named_parameters()]
    with pytest.raises(InputError, match=r"experts.*3 dimensions"), members(weights_of(model), PROBES[:2], 2):
        model(ids.repeat(2, 1))
    rest = weights_of(model, names=[n for n in names if "experts" not in n])
    check_members(rest, PROBES, 2, lambda count: model(ids.repeat(count, 1)).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_sixteen_bits_passes_its_trial(dtype: torch.dtype) -> None:
    lm = tiny.make("llama", dtype)
    for kind in (Kind.CHOICE, Kind.TEXT):
        pool = pool_for(lm, kind)
        together, _ = scorers(lm, pool, "all")
        assert len(together.outputs(kind, MEMBERS, np.arange(4))) == 4
