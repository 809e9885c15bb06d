"""Where the parts of a transformer are: its layers, its final norm, its output head. Found by shape, not by model name."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from zo_objectives.errors import InputError

NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "layer_norm")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model, with their names as `named_parameters` has them.

    `norm` is the one that the head reads: that after the last layer, or the one in a masked model's head.
    """

    layers: nn.ModuleList
    layers_name: str
    norm: nn.Module
    norm_name: str
    head: nn.Module
    head_name: str

    @property
    def depth(self) -> int:
        return len(self.layers)

    def level(self, parameter: str) -> int:
        """The lowest point of the forward pass that `parameter` can reach: a layer's number, `depth` above all, -1 below."""
        if parameter.startswith(self.layers_name + "."):
            return int(parameter[len(self.layers_name) + 1 :].split(".")[0])
        above = (self.norm_name + ".", self.head_name + ".")
        return self.depth if parameter.startswith(above) else -1


def anatomy(model: Any) -> Anatomy:
    """The parts of `model`. Raises InputError where they cannot be told, naming what can still be tuned."""
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    stacks = {
        n: m for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) > 0 and len({type(x) for x in m}) == 1
    }
    name = max(stacks, key=lambda n: sum(p.numel() for p in stacks[n].parameters()), default=None)
    if name is None or head is None:
        raise InputError(
            f"{type(model).__name__}: found no stack of layers or no output head. Use tune=all or tune=pattern:REGEX."
        )
    parent, _, _ = name.rpartition(".")
    head_name = next(n for n, m in modules.items() if m is head)
    beside, _, _ = head_name.rpartition(".")
    norms = [n for n, m in modules.items() if beside and n.startswith(beside + ".") and "norm" in type(m).__name__.lower()]
    norms = norms[-1:] or [f"{parent}.{n}" for n in NORM_NAMES if f"{parent}.{n}" in modules]
    norms = norms or _norms_behind(modules[parent], stacks[name], parent)[-1:]
    if not norms:
        raise InputError(f"{type(model).__name__}: found no final norm beside {name!r}. Use tune=all or tune=pattern:REGEX.")
    return Anatomy(stacks[name], name, modules[norms[0]], norms[0], head, head_name)


def _norms_behind(owner: nn.Module, stack: nn.Module, parent: str) -> list[str]:
    """The norms that a module names after its stack of layers."""
    beside = list(owner.named_children())
    place = next(i for i, (_, module) in enumerate(beside) if module is stack)
    return [f"{parent}.{name}" for name, module in beside[place + 1 :] if "norm" in type(module).__name__.lower()]
