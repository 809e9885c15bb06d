"""Weights: what can be tuned, stacked members, moving in pieces, saving and loading."""

import math

import pytest
import torch
from small import CPU, DTYPES, IDS, RULES, STORES, Tiny, bits, seen_by_modules, tuned_names, weights_of
from torch import nn
from torch.func import functional_call

from zo_objectives.errors import InputError
from zo_objectives.search import rules
from zo_objectives.search import weights as module
from zo_objectives.search.estimators import Spsa
from zo_objectives.search.geometry import Dense, Leaf, Masked, Scaled, largest, root_mean_square, smallest
from zo_objectives.search.noise import Law
from zo_objectives.search.schedules import constant
from zo_objectives.search.shaping import unit
from zo_objectives.search.tuned import find_tuned, matching, trainable
from zo_objectives.search.weights import Weights

every_store = pytest.mark.parametrize("store", STORES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_rule = pytest.mark.parametrize("rule", RULES)
GAINS = {n: 0.5 + i / 3 for i, n in enumerate(tuned_names(Tiny()))}
GEOMETRY = Scaled(Dense(Law.GAUSSIAN), GAINS)


def test_find_tuned_keeps_the_models_order_and_every_owner() -> None:
    model = Tiny()
    found = find_tuned(model, ["lin.bias", "emb.weight", "lin.bias"])
    assert [t.name for t in found] == ["emb.weight", "lin.bias"]
    assert found[0].owners == ((model.emb, "weight"), (model.head, "weight"))
    assert found[1].owners == ((model.lin, "bias"),)
    assert weights_of(model).count == 28 + 16 + 4 + 1


def test_what_cannot_be_tuned_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Unknown parameter 'lin.wieght'. Did you mean 'lin.weight'"):
        find_tuned(Tiny(), ["lin.wieght"])
    with pytest.raises(InputError, match="Unknown parameter 'shift'"):  # a buffer
        find_tuned(Tiny(), ["shift"])
    with pytest.raises(InputError, match="Nothing to tune"):
        find_tuned(Tiny(), [])
    with pytest.raises(InputError, match=r"Unknown weight store 'masters'. Did you mean 'master'"):
        weights_of(Tiny(), "masters")


UNFIT = [torch.ones(2, 3).T, torch.ones(2, dtype=torch.int8), torch.ones(2, dtype=torch.float64), torch.ones(2) * 1j]


@pytest.mark.parametrize("values", UNFIT)
def test_only_contiguous_floats_of_16_and_32_bits_are_tuned(values: torch.Tensor) -> None:
    model = Tiny()
    model.lin.bias = nn.Parameter(values, requires_grad=False)
    with pytest.raises(InputError, match=r"'lin\.bias'.*16 or 32-bit floats"):
        weights_of(model)


def test_only_what_is_named_moves() -> None:
    model = Tiny()
    before = bits(model)
    weights = Weights(model, ["lin.weight"], geometry=Dense(), rule=RULES["sgd"]())
    weights.ascend(0, Spsa(0.1).gradient(1, (1.0, 0.0)))
    assert {name for name, value in bits(model).items() if value != before[name]} == {"lin.weight"}


@every_store
@every_dtype
def test_stacked_is_what_at_computes_with(store: str, dtype: torch.dtype) -> None:
    model = Tiny(dtype)
    weights = weights_of(model, store, GEOMETRY)
    weights.ascend(0, Spsa(0.1).gradient(1, (0.1, 0.0)))  # so that a master has more bits than the live weights
    before, probes = bits(model), Spsa(0.1, 2).probes(9)
    stacked = weights.stacked(probes)
    assert {name: (v.dtype, v.shape[0]) for name, v in stacked.items()} == dict.fromkeys(GAINS, (torch.float32, 4))
    for row, probe in enumerate(probes):
        member = {name: values[row].to(dtype) for name, values in stacked.items()}
        seen = seen_by_modules(weights, model, probe)
        assert {name for name, _ in seen} == set(GAINS)
        assert all(torch.equal(values, member[name]) for name, values in seen)
        with weights.at(probe):
            expected = model(IDS)
        assert torch.equal(functional_call(model, member, (IDS,)), expected)
    assert bits(model) == before


@every_rule
@every_store
@every_dtype
def test_pieces_make_the_same_step(rule: str, store: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = set()
    for piece in (module.PIECE, 5, 16):
        monkeypatch.setattr(module, "PIECE", piece)
        weights = weights_of(Tiny(dtype), store, GEOMETRY, RULES[rule]())
        for t in range(3):
            weights.ascend(t, Spsa(0.1, 2, unit).gradient(t, (1, 0, 0, 2)))
        fingerprints.add(weights.fingerprint())
    assert len(fingerprints) == 1


@every_store
@every_dtype
def test_state_dict_and_load_are_a_round_trip(store: str, dtype: torch.dtype) -> None:
    model = Tiny(dtype)
    weights = weights_of(model, store)
    weights.ascend(0, Spsa(0.1).gradient(1, (0.1, 0.0)))
    saved, fingerprint, before = weights.state_dict(), weights.fingerprint(), bits(model)
    assert {n: v.shape for n, v in saved.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert {v.dtype for v in saved.values()} == {torch.float32 if store == "master" else dtype}
    weights.ascend(1, Spsa(0.1).gradient(2, (0.1, 0.0)))
    assert weights.fingerprint() != fingerprint  # and `saved` is a copy
    weights.load(saved)
    assert weights.fingerprint() == fingerprint and bits(model) == before
    other_model = Tiny(dtype)
    other = weights_of(other_model, store)
    other.load(saved)
    assert other.fingerprint() == fingerprint and bits(other_model) == before


def test_a_fingerprint_changes_with_one_bit() -> None:
    model = Tiny(torch.bfloat16)
    weights = weights_of(model)
    before = weights.fingerprint()
    assert weights_of(Tiny(torch.bfloat16)).fingerprint() == before
    for _, parameter in model.named_parameters():
        word = parameter.data.view(-1).view(torch.int16)
        word[-1] ^= 1
        assert weights.fingerprint() != before
        word[-1] ^= 1
    assert weights.fingerprint() == before
    model.shift.add_(1)  # a buffer is not tuned
    assert weights.fingerprint() == before


def test_a_fingerprint_tells_names_shapes_and_dtypes_apart() -> None:
    class Named(nn.Module):
        def __init__(self, name: str, values: torch.Tensor) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(values))

    zeros = torch.zeros(4)
    models = (
        Named("a", zeros),
        Named("b", zeros),
        Named("a", zeros.view(2, 2)),
        Named("a", torch.zeros(8).bfloat16()),
        Named("a", torch.zeros(8).half()),
    )
    assert len({weights_of(m).fingerprint() for m in models}) == len(models)


@every_store
def test_an_update_is_scaled_by_the_gain_and_decays(store: str) -> None:
    model = Tiny()
    rule = RULES["sgd"](rate=0.5, weight_decay=0.1)
    weights = weights_of(model, store, GEOMETRY, rule)
    before = weights.state_dict()
    gradient = Spsa(1.0).gradient(4, (3.0, 1.0))  # a coefficient of 1
    weights.ascend(0, gradient)
    for name, value in weights.state_dict().items():
        z = GEOMETRY.directions(gradient.keys, Leaf(name, tuple(value.shape)), range(value.numel()), value.device).view(
            value.shape
        )
        torch.testing.assert_close(value, before[name] * 0.95 + GAINS[name] * 0.5 * z)


def test_root_mean_square_has_a_floor() -> None:
    assert root_mean_square(torch.tensor([3.0, -4.0], dtype=torch.bfloat16)) == pytest.approx(12.5**0.5)
    assert root_mean_square(torch.zeros(5)) == 1e-3


class Attention(nn.Module):
    """nn.MultiheadAttention uses its out_proj's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x, x, x, need_weights=False)[0]
        return out


class Recurrent(nn.Module):
    """nn.LSTM keeps a list of its parameters beside the attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)[0]
        return out


class Reaching(nn.Module):
    """Uses the weights of a child that it never calls, some through views, and asks for their dtype and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.inner.weight.dtype) @ self.inner.weight.T * self.inner.weight.shape[0]
        return torch.cat([x + self.inner.bias.data, self.scale.expand(*x.shape[:2], 3)], dim=-1)


@every_store
@pytest.mark.parametrize("kind", [Attention, Recurrent, Reaching])
def test_parameters_used_by_others_than_their_owner_are_probed(kind: type[nn.Module], store: str) -> None:
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    weights, before = weights_of(model, store, Dense(Law.GAUSSIAN)), bits(model)
    x = torch.linspace(-1, 1, 24).view(2, 3, 4)
    (member,) = ({n: v[0] for n, v in weights.stacked([p]).items()} for p in Spsa(0.3).probes(9)[:1])
    plain = kind().eval().requires_grad_(False)
    plain.load_state_dict(member)
    with weights.at(Spsa(0.3).probes(9)[0]):
        torch.testing.assert_close(model(x), plain(x))
    assert bits(model) == before


@every_dtype
@every_store
def test_a_watched_step_is_the_same_step_and_says_what_became_of_it(store: str, dtype: torch.dtype) -> None:
    made = []
    for watch in (False, True):
        weights = weights_of(Tiny(dtype), store, rule=RULES["sgd"](rate=1e-3, weight_decay=0.0))
        found = [weights.ascend(t, Spsa(0.1).gradient(t, (1.0, 0.0)), watch=watch) for t in range(5)]
        made.append(weights.fingerprint())
    assert made[0] == made[1]
    for realised in found:
        assert realised is not None
        exact = store == "master" or dtype == torch.float32
        assert (realised.applied_frac == 1) == exact or realised.applied_frac > 0.5
        assert realised.cosine == pytest.approx(1, abs=1e-6 if exact else 0.5)
    nothing = weights.ascend(5, Spsa(0.1).gradient(5, (1.0, 1.0)), watch=True)
    assert nothing is not None and all(map(math.isnan, nothing))


def test_small_steps_in_16_bits_are_rare_but_right_on_average() -> None:
    """Rounding to the nearest would lose them all; stochastic rounding keeps the mean, and applied_frac tells how many."""
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16), requires_grad=False))
    weights = Weights(model, ["w"], geometry=Dense(), rule=RULES["sgd"](rate=2.0**-12, weight_decay=0.0))
    gradient = Spsa(0.5).gradient(3, (1.0, 0.0))
    z = Dense().directions(gradient.keys, Leaf("w", (20_000,)), range(20_000), CPU)[0]
    realised = weights.ascend(0, gradient, watch=True)
    assert realised is not None
    step = model.w.float() - 1  # gaps: 2**-8 below 1, 2**-7 above
    assert realised.applied_frac == pytest.approx((2.0**-4 + 2.0**-5) / 2, rel=0.15)
    assert float((step * z).mean()) == pytest.approx(2.0**-12, rel=0.15)
    assert 0.1 < realised.cosine < 0.35


def test_anchored_decay_returns_to_the_start_and_plain_decay_to_zero() -> None:
    for rule, target in ((rules.anchored(rules.sgd(constant(0.5)), 1.0), 1.0), (rules.sgd(constant(0.5), 1.0), 0.0)):
        model = Tiny()
        weights = weights_of(model, rule=rule)
        start = weights.state_dict()
        weights.ascend(0, Spsa(1.0).gradient(4, (3.0, 1.0)))
        moved = weights.state_dict()
        for t in range(1, 30):
            weights.ascend(t, Spsa(1.0).gradient(4, (1.0, 1.0)))
        for name, value in weights.state_dict().items():
            assert not torch.equal(moved[name], start[name])
            torch.testing.assert_close(value, start[name] * target, atol=1e-6, rtol=0)


def test_the_in_place_store_is_mezos_and_drifts() -> None:
    """Algorithm 1 as published: its probes are those of the exact stores, and what it leaves behind is not what it found."""
    model, exact = Tiny(torch.bfloat16), Tiny(torch.bfloat16)
    drifting, kept = weights_of(model, "in_place"), weights_of(exact, "inference")
    assert not drifting.store.exact and kept.store.exact
    probe = Spsa(0.01).probes(3)[0]
    with drifting.at(probe), kept.at(probe):
        assert torch.equal(model(IDS), exact(IDS))
    for key in range(200):
        for p in Spsa(0.01).probes(key):
            with drifting.at(p), kept.at(p):
                pass
    assert bits(exact) == bits(Tiny(torch.bfloat16)) and bits(model) != bits(exact)


def test_tuned_names_by_pattern_and_by_what_requires_a_gradient() -> None:
    model = Tiny().requires_grad_(False)
    assert matching(model, r"^lin\.") == ("lin.weight", "lin.bias")
    with pytest.raises(InputError, match=r"No parameter's name matches 'nix'. They are called like 'temperature'"):
        matching(model, "nix")
    with pytest.raises(InputError, match="not a regular expression"):
        matching(model, "(")
    with pytest.raises(InputError, match="requires a gradient"):
        trainable(model)
    model.lin.bias.requires_grad_(True)
    assert trainable(model) == ("lin.bias",)


def test_masks_by_magnitude() -> None:
    values = {"a": torch.tensor([[3.0, -1.0], [0.0, -4.0]], dtype=torch.bfloat16), "b": torch.zeros(3)}
    assert {n: m.tolist() for n, m in smallest(values, 0.5).items()} == {"a": [False, True, True, False], "b": [True] * 3}
    assert {n: m.tolist() for n, m in largest(values, 0.25).items()} == {"a": [False, False, False, True], "b": [True] * 3}
    for share in (0.0, 1.5, -1.0):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            smallest(values, share)


def test_what_is_masked_never_moves() -> None:
    model = Tiny()
    masks = largest(dict(model.named_parameters()), 0.5)
    weights = weights_of(model, geometry=Masked(Dense(), masks), rule=rules.adam(constant(0.1)))
    before = weights.state_dict()
    for t in range(3):
        weights.ascend(t, Spsa(0.1, 2).gradient(t, (1.0, 0.0, 0.5, 0.7)))
    for name, value in weights.state_dict().items():
        assert torch.equal(value.view(-1) != before[name].view(-1), masks[name])


class Layered(nn.Module):
    """Linear layers of several sizes and dtypes, one called twice, one whose output is a view of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 4), nn.Linear(4, 40)
        self.low = nn.Linear(4, 4, dtype=torch.bfloat16)
        self.view = ItsWeight(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.view(x)
        x = self.small(self.small(x)) + self.low(x.bfloat16()).float()
        return torch.cat([self.large(x), x @ kept.T], dim=-1)


class ItsWeight(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.weight[:3]


def test_scratch_that_is_used_again_is_nobody_elses() -> None:
    """Law 3's other half: what one layer computes with is not overwritten by the next, whatever its output is a view of."""
    torch.manual_seed(0)
    model = Layered().requires_grad_(False)
    weights = weights_of(model, geometry=Dense(Law.GAUSSIAN))
    x = torch.linspace(-1, 1, 8).view(2, 4)
    for probe in Spsa(0.3, 2).probes(9):
        plain = Layered().requires_grad_(False)
        plain.load_state_dict({n: v[0] for n, v in weights.stacked([probe]).items()})
        with weights.at(probe):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    arena = weights.store.arena  # type: ignore[attr-defined]
    assert {kind[0]: len(values) for kind, values in arena.items()} == {torch.float32: 192 + 64, torch.bfloat16: 64 + 64}
