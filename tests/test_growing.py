"""Growing prefixes: the states of whole passes, at the price of a token each where the rest has been run."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, FalconH1Config, MambaConfig

from zo_objectives.growing import Growing, growing, has_past
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.passes import Padded
from zo_objectives.language.sheet import Ids
from zo_objectives.tail import Sites
from zo_objectives.trunk import Trunk

CALLS: list[list[Ids]] = [  # as members go on that part from each other; what is known already is left out
    [(5, 6, 7), (5, 6, 8, 9, 10), (4,)],
    [(5, 6, 8, 9, 10, 11), (5, 6, 7, 1), (5, 6, 7, 2), (4, 3)],  # one has two children
    [(5, 6, 7, 2, 1), (7, 7, 7, 7, 7, 7, 7, 7), (4, 3, 3)],  # two ended, and one comes from nowhere
    [(7, 7, 7, 7, 7, 7, 7, 7, 1), (5, 6, 7, 2, 1, 9)],
    [(3, 2, 1)],
    [(3, 2, 1, 0), (3, 2, 1, 2)],
]


class Counting(Trunk):
    """A trunk that notes the shapes of its passes."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__(lm, tiny.DEPTH)
        self.shapes: list[tuple[int, ...]] = []

    def run(self, batch: Padded, **given: Any) -> Tensor:
        self.shapes.append(tuple(batch.ids.shape))
        return super().run(batch, **given)


def of_config(config: Any) -> LanguageModel:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    return LanguageModel(model.eval().requires_grad_(False), tiny.tokenizer("bos"), config.model_type)


def bloom() -> LanguageModel:
    """A model whose forward takes no positions."""
    return of_config(BloomConfig(vocab_size=300, hidden_size=32, n_layer=tiny.DEPTH, n_head=4))


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.UNPLAIN, "bloom"])
def test_states_are_those_of_whole_passes(family: str) -> None:
    lm = bloom() if family == "bloom" else tiny.make(family)
    trunk = Counting(lm)
    run = Growing(lm, trunk)
    for prefixes in CALLS:
        alone = [Trunk(lm, tiny.DEPTH).run(Padded((0,), torch.tensor([p]), torch.ones(1, len(p)).long())) for p in prefixes]
        torch.testing.assert_close(run(prefixes), torch.cat([states[:, -1] for states in alone]), atol=2e-5, rtol=1e-4)
    assert trunk.shapes == [(3, 5), (4, 1), (1, 8), (2, 1), (2, 1), (1, 3), (2, 1)]


def test_what_is_met_before_is_not_run() -> None:
    lm = tiny.make()
    trunk = Counting(lm)
    sites = Sites(lm, trunk)
    first = sites.of_prefixes([(1, 2), (1, 2), (1, 3)], growing(lm, trunk))
    assert trunk.shapes == [(2, 2)] and first.tolist() == [0, 0, 1]
    run = growing(lm, trunk)
    assert sites.of_prefixes([(1, 3), (1, 2)], run).tolist() == [1, 0] and trunk.shapes == [(2, 2)]
    assert sites.of_prefixes([(1, 3, 4), (1, 2)], run).tolist() == [2, 0] and trunk.shapes == [(2, 2), (1, 3)]


SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": tiny.DEPTH}
MIXED = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2} | {
    f"mamba_{name}": size for name, size in {"d_ssm": 32, "n_heads": 4, "d_head": 8, "d_state": 4, "n_groups": 1}.items()
}


@pytest.mark.parametrize("config", [MambaConfig(**SIZES), FalconH1Config(**SIZES, **MIXED)], ids=["recurrent", "hybrid"])
def test_a_model_with_a_past_of_another_kind_has_its_prefixes_run_whole(config: Any) -> None:
    lm = of_config(config)
    trunk = Counting(lm)
    assert not has_past(lm) and growing(lm, trunk) is None
    sites = Sites(lm, trunk)
    sites.of_prefixes([(1, 2)], growing(lm, trunk))
    numbers = sites.of_prefixes([(1, 2, 3)], growing(lm, trunk))
    assert trunk.shapes == [(1, 2), (1, 3)]
    whole = trunk.run(Padded((0,), torch.tensor([(1, 2, 3)]), torch.ones(1, 3).long()))
    torch.testing.assert_close(sites.at(numbers), whole[:, -1])


def test_a_model_that_continues_nothing_has_no_past() -> None:
    assert (
        has_past(tiny.make())
        and not has_past(tiny.make("lfm2"))
        and not has_past(tiny.make_masked())
        and not has_past(tiny.make_encoder())
    )
