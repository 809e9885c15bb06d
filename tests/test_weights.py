"""Weights: what can be tuned, stacked members, moving in pieces, saving and loading."""

import pytest
import torch
from small import DTYPES, IDS, RULES, STORES, Tiny, bits, seen_by_modules, tuned_names, weights_of
from torch import nn
from torch.func import functional_call

from zo_objectives import weights as module
from zo_objectives.errors import InputError
from zo_objectives.estimators import Spsa, unit
from zo_objectives.geometry import Dense, Scaled, root_mean_square
from zo_objectives.noise import Law
from zo_objectives.weights import Weights, find_tuned

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
        z = GEOMETRY.directions(gradient.keys, name, range(value.numel()), value.device).view(value.shape)
        torch.testing.assert_close(value, before[name] * 0.95 + GAINS[name] * 0.5 * z)


def test_root_mean_square_has_a_floor() -> None:
    assert root_mean_square(torch.tensor([3.0, -4.0], dtype=torch.bfloat16)) == pytest.approx(12.5**0.5)
    assert root_mean_square(torch.zeros(5)) == 1e-3
