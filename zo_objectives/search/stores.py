"""Weight stores: where a probe lives, and how updates are kept.

    inference   no second copy. While a probe is open every module computes with a scratch copy of its own parameters,
                made when it is entered and dropped when it returns; theta itself is never written. A function of torch
                that gets a tuned parameter otherwise, from another module or a list, gets such a copy in its place.
                Updates of 16-bit weights are rounded stochastically with bits from the same noise function, so they
                replay exactly.
    master      a float32 copy; live = cast(master + scale * d * z), and cast(master) at rest.
    in_place    the paper's Algorithm 1: noise is added, and subtracted again. Drifts; for comparison only.

The first two are exact: after a probe every bit is as before, in every dtype.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zo_objectives.search.estimators import Probe
from zo_objectives.search.geometry import Geometry, tensor_id
from zo_objectives.search.rounding import round_into
from zo_objectives.search.tuned import Tuned

Function = Callable[..., Any]
NAMES = ("dtype", "device", "shape", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_meta", "grad", "grad_fn")
ASKS: frozenset[Function] = frozenset(  # what only asks about a tensor, or makes another one like it
    [
        *(getattr(Tensor, name).__get__ for name in NAMES),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.is_contiguous, Tensor.element_size),
        *(Tensor.__len__, Tensor.__repr__, Tensor.is_floating_point, Tensor.is_complex),
        *(torch.numel, torch.is_floating_point, torch.is_complex, torch.empty_like, torch.zeros_like, torch.ones_like),
        *(Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full),
    ]
)


class Store(Protocol):
    """Where probes live. `open` and `close` bracket one probe; `read` and `write` serve updates, flat and in pieces."""

    @property
    def exact(self) -> bool:
        """Whether leaving a probe restores every bit (laws 3 and 4)."""

    def open(self, tuned: Sequence[Tuned], probe: Probe, geometry: Geometry) -> None:
        """Puts the probe in, in these tensors."""

    def close(self) -> None:
        """Takes it out again."""

    def read(self, tuned: Tuned) -> Tensor:
        """The values at rest, flat, in the store's dtype; not to be written."""

    def own(self, tuned: Tuned) -> Tensor | None:
        """The values at rest, flat and float32, to be changed in place where the store keeps them so; then `moved`."""

    def moved(self, tuned: Tuned) -> None:
        """What `own` gave has been changed."""

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        """Replaces elements `span` by float32 `values`; `key` supplies rounding bits."""

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        """Replaces a whole tensor by what `read` once gave."""


Arena = dict[tuple[torch.dtype, torch.device], Tensor]


class _LiveStore:
    """What the stores without a copy share: the live weights are the weights at rest."""

    def read(self, tuned: Tuned) -> Tensor:
        return tuned.flat

    def own(self, tuned: Tuned) -> Tensor | None:
        return tuned.flat if tuned.parameter.dtype == torch.float32 else None

    def moved(self, tuned: Tuned) -> None:
        pass

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        round_into(tuned.flat[span], values, key, tensor_id(tuned.name), span.start)

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        tuned.flat.copy_(values)


class InferenceStore(_LiveStore):
    """No second copy: see the module's text. Not for scripted models, whose functions nobody sees."""

    exact = True

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.leaving = ExitStack()
        self.arena: Arena = {}

    def open(self, tuned: Sequence[Tuned], probe: Probe, geometry: Geometry) -> None:
        flats = {t.name: t.flat for t in tuned}  # views that no function takes for the parameters themselves

        def moved(entry: Tuned, place: Tensor | None = None) -> Tensor:
            flat = flats[entry.name]
            scratch = torch.empty_like(flat) if place is None else place
            coefficient = probe.scale * geometry.probe_gain(entry.name)
            geometry.axpy(scratch, flat, probe.key, entry.leaf, coefficient)
            return scratch.view(entry.leaf.shape)

        modules: dict[nn.Module, list[tuple[str, Tuned]]] = {}
        for entry in tuned:
            for module, attribute in entry.owners:
                modules.setdefault(module, []).append((attribute, entry))
        arena = self._arena([[e for _, e in entries] for module, entries in modules.items() if _consumes(module)])
        for module, entries in modules.items():
            places = _places(arena, [e for _, e in entries]) if _consumes(module) else [None] * len(entries)
            enter, leave = _enter(entries, places, moved), _leave(entries)
            self.leaving.callback(leave, module, None, None)
            self.leaving.callback(module.register_forward_pre_hook(enter).remove)
            self.leaving.callback(module.register_forward_hook(leave, always_call=True).remove)
        self.leaving.enter_context(_Stand(tuned, moved))

    def _arena(self, layers: Sequence[Sequence[Tuned]]) -> Arena:
        """Scratch that is used again, of each dtype and device as much as the largest layer needs."""
        for entries in layers:
            kind, (_, size) = _kind(entries[0]), _starts(entries)
            if len(self.arena.get(kind, ())) < size:
                self.arena[kind] = torch.empty(size, dtype=kind[0], device=kind[1])
        return self.arena

    def close(self) -> None:
        self.leaving.close()


CONSUMING = (nn.Linear.forward, nn.Embedding.forward)  # call no other module, and give out no view of their parameters
ALIGNED = 64  # elements
Moved = Callable[..., Tensor]


def _consumes(module: nn.Module) -> bool:
    """Whether a module is known to keep nothing of its parameters, so that their scratch can be used again."""
    return type(module).forward in CONSUMING


def _kind(entry: Tuned) -> tuple[torch.dtype, torch.device]:
    return entry.parameter.dtype, entry.parameter.device


def _starts(entries: Sequence[Tuned]) -> tuple[list[int], int]:
    """Where each tensor of a layer begins in an arena, and where the last one ends."""
    ends = list(accumulate(-(-e.parameter.numel() // ALIGNED) * ALIGNED for e in entries))
    return [0, *ends[:-1]], ends[-1]


def _places(arena: Arena, entries: Sequence[Tuned]) -> list[Tensor | None]:
    """Where a layer's tensors go in an arena; nowhere, for one of another dtype or device than the first."""
    kind, (starts, _) = _kind(entries[0]), _starts(entries)
    found = zip(entries, starts, strict=True)
    return [arena[kind][at : at + e.parameter.numel()] if _kind(e) == kind else None for e, at in found]


def _enter(
    entries: Sequence[tuple[str, Tuned]], places: Sequence[Tensor | None], moved: Moved
) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        for (attribute, entry), place in zip(entries, places, strict=True):
            module._parameters[attribute] = moved(entry, place)  # type: ignore[assignment]  # a tensor for one forward

    return hook


def _leave(entries: Sequence[tuple[str, Tuned]]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        for attribute, entry in entries:
            module._parameters[attribute] = entry.parameter

    return hook


class _Stand(TorchFunctionMode):
    """While entered, any function of torch that gets a tuned parameter gets its moved copy."""

    def __init__(self, tuned: Sequence[Tuned], moved: Moved) -> None:
        super().__init__()
        self.entries = {id(t.parameter): t for t in tuned}
        self.moved = moved

    def __torch_function__(
        self, func: Function, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func in ASKS:
            return func(*args, **named)
        return func(*map(self._stand_in, args), **{name: self._stand_in(value) for name, value in named.items()})

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            entry = self.entries.get(id(value))
            return value if entry is None else self.moved(entry)
        return [self._stand_in(v) for v in value] if type(value) is list else value


class MasterStore:
    """A float32 copy beside the live weights: see the module's text."""

    exact = True

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.masters = {t.name: t.flat.float().clone() for t in tuned}
        self.probed: Sequence[Tuned] = ()

    def open(self, tuned: Sequence[Tuned], probe: Probe, geometry: Geometry) -> None:
        self.probed = tuned
        for t in tuned:
            coefficient = probe.scale * geometry.probe_gain(t.name)
            geometry.axpy(t.flat, self.masters[t.name], probe.key, t.leaf, coefficient)

    def close(self) -> None:
        for t in self.probed:
            t.flat.copy_(self.masters[t.name])
        self.probed = ()

    def read(self, tuned: Tuned) -> Tensor:
        return self.masters[tuned.name]

    def own(self, tuned: Tuned) -> Tensor | None:
        return self.masters[tuned.name]

    def moved(self, tuned: Tuned) -> None:
        tuned.flat.copy_(self.masters[tuned.name])

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        self.masters[tuned.name][span].copy_(values)
        tuned.flat[span].copy_(values)

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        self.write(tuned, slice(0, values.numel()), values, key=0)


class InPlaceStore(_LiveStore):
    """MeZO, Algorithm 1, as published: perturb the weights themselves, and undo it by subtraction.

    Not exact: a probe leaves rounding errors behind, in bfloat16 more than twice the perturbation after a thousand.
    """

    exact = False

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.undo: list[Callable[[], None]] = []

    def open(self, tuned: Sequence[Tuned], probe: Probe, geometry: Geometry) -> None:
        for t in tuned:
            self._add(t, probe, geometry, 1.0)
            self.undo.append(lambda t=t: self._add(t, probe, geometry, -1.0))  # type: ignore[misc]

    def _add(self, t: Tuned, probe: Probe, geometry: Geometry, factor: float) -> None:
        coefficient = factor * probe.scale * geometry.probe_gain(t.name)
        geometry.axpy(t.flat, t.flat, probe.key, t.leaf, coefficient)

    def close(self) -> None:
        while self.undo:
            self.undo.pop()()


STORES: dict[str, Callable[[Sequence[Tuned]], Store]] = {
    "inference": InferenceStore,
    "master": MasterStore,
    "in_place": InPlaceStore,
}
