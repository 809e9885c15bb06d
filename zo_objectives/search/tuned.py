"""What of a model is tuned: parameters by name, each with every module that holds it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError, unknown
from zo_objectives.search.geometry import Leaf

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Tuned:
    """A parameter that is tuned, and every (module, attribute) that holds it: more than one where weights are tied."""

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]

    @property
    def flat(self) -> Tensor:
        return self.parameter.data.view(-1)

    @property
    def leaf(self) -> Leaf:
        return Leaf(self.name, tuple(self.parameter.shape))


def find_tuned(model: nn.Module, names: Sequence[str]) -> tuple[Tuned, ...]:
    """The named parameters of `model`, once each, in the model's order. Raises InputError for what cannot be tuned."""
    wanted = set(names)
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((module, attribute))
    found = [Tuned(n, p, tuple(owners[id(p)])) for n, p in model.named_parameters() if n in wanted]
    if missing := wanted - {t.name for t in found}:
        raise unknown("parameter", sorted(missing)[0], (n for n, _ in model.named_parameters()))
    if not found:
        raise InputError("Nothing to tune: no parameter was selected. Choose another `tune`, such as `head` or `all`.")
    for tuned in found:
        if tuned.parameter.dtype not in DTYPES or not tuned.parameter.is_contiguous():
            raise InputError(
                f"Parameter {tuned.name!r} ({tuned.parameter.dtype}) is no contiguous tensor of 16 or 32-bit floats."
            )
    return tuple(found)


def matching(model: nn.Module, pattern: str) -> tuple[str, ...]:
    """Names of the parameters in which the regular expression `pattern` is found. Raises InputError for none."""
    try:
        found = tuple(n for n, _ in model.named_parameters() if re.search(pattern, n))
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}.") from error
    if not found:
        first = next((n for n, _ in model.named_parameters()), "nothing")
        raise InputError(f"No parameter's name matches {pattern!r}. They are called like {first!r}.")
    return found


def trainable(model: nn.Module) -> tuple[str, ...]:
    """Names of the parameters that require a gradient: after peft's `get_peft_model`, the adapters. Raises InputError."""
    found = tuple(n for n, p in model.named_parameters() if p.requires_grad)
    if not found:
        raise InputError("No parameter of the model requires a gradient: name the parameters to tune, or put in an adapter.")
    return found
