"""Weights: the one owner of the tuned numbers. Everything else is pure.

Two stores answer "where does a probe live?", both exact: after a probe every bit is as before, in every dtype.

    inference   no second copy. While a probe is open every module computes with a scratch copy of its own parameters,
                made when it is entered and dropped when it returns; theta itself is never written. Updates of 16-bit
                weights are rounded stochastically with bits from the same noise function, so they replay exactly.
    master      a float32 copy; live = cast(master + scale * d * z), and cast(master) at rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zo_objectives import noise
from zo_objectives.errors import InputError, unknown
from zo_objectives.estimators import Probe, ProjectedGradient
from zo_objectives.geometry import Geometry, tensor_id
from zo_objectives.rules import UpdateRule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PIECE = 1 << 22  # elements updated at a time, which bounds the scratch memory of a step


@dataclass(frozen=True)
class Tuned:
    """A parameter that is tuned, and every (module, attribute) that holds it: more than one where weights are tied."""

    name: str
    parameter: nn.Parameter
    owners: tuple[tuple[nn.Module, str], ...]

    @property
    def flat(self) -> Tensor:
        return self.parameter.data.view(-1)


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


class Store(Protocol):
    """Where probes live. `open` and `close` bracket one probe; `read` and `write` serve updates, flat and in pieces."""

    def open(self, probe: Probe, geometry: Geometry) -> None: ...
    def close(self) -> None: ...
    def read(self, tuned: Tuned) -> Tensor:
        """The values at rest, flat, in the store's dtype; not to be written."""

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        """Replaces elements `span` by float32 `values`; `key` supplies rounding bits."""

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        """Replaces a whole tensor by what `read` once gave."""


def round_stochastically(values: Tensor, dtype: torch.dtype, bits: Tensor) -> Tensor:
    """Float32 `values` in `dtype`, up or down with the probabilities that make the mean exact (to 2**-13 of a gap).

    `bits` are uniform integers on 0..65535. bfloat16 keeps float32's upper 16 bits; float16 drops 13 bits, and has a
    fixed gap of 2**-24 below 2**-14.
    """
    if dtype == torch.float32:
        return values
    drop = 16 if dtype == torch.bfloat16 else 13
    raised = values.view(torch.int32) + (bits >> (16 - drop))
    rounded = (raised >> drop << drop).view(torch.float32)
    if dtype == torch.float16:
        small = torch.floor(values * 2.0**24 + (bits >> 3) * 2.0**-13) * 2.0**-24
        rounded = torch.where(values.abs() < 2.0**-14, small, rounded)
    return rounded.to(dtype)


class InferenceStore:
    """No second copy: see the module's text."""

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.tuned = tuned
        self.modules: dict[nn.Module, list[tuple[str, Tuned]]] = {}
        for entry in tuned:
            for module, attribute in entry.owners:
                self.modules.setdefault(module, []).append((attribute, entry))
        self.handles: list[Any] = []

    def open(self, probe: Probe, geometry: Geometry) -> None:
        for module in self.modules:
            self.handles.append(module.register_forward_pre_hook(self._enter(probe, geometry)))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, probe: Probe, geometry: Geometry) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            for attribute, entry in self.modules[module]:
                scratch = torch.empty_like(entry.parameter.data)
                coefficient = probe.scale * geometry.gain(entry.name)
                geometry.axpy(scratch.view(-1), entry.flat, probe.key, entry.name, coefficient)
                module._parameters[attribute] = scratch  # type: ignore[assignment]  # a plain tensor for one forward

        return hook

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for attribute, entry in self.modules[module]:
            module._parameters[attribute] = entry.parameter

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for module in self.modules:
            self._leave(module, None, None)

    def read(self, tuned: Tuned) -> Tensor:
        return tuned.flat

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        dtype = tuned.parameter.dtype
        if dtype != torch.float32:
            bits = noise.rounding_bits(key, tensor_id(tuned.name), range(span.start, span.stop), values.device)
            values = round_stochastically(values, dtype, bits)
        tuned.flat[span].copy_(values)

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        tuned.flat.copy_(values)


class MasterStore:
    """A float32 copy beside the live weights: see the module's text."""

    def __init__(self, tuned: Sequence[Tuned]) -> None:
        self.tuned = tuned
        self.masters = {t.name: t.flat.float().clone() for t in tuned}

    def open(self, probe: Probe, geometry: Geometry) -> None:
        for t in self.tuned:
            coefficient = probe.scale * geometry.gain(t.name)
            geometry.axpy(t.flat, self.masters[t.name], probe.key, t.name, coefficient)

    def close(self) -> None:
        for t in self.tuned:
            t.flat.copy_(self.masters[t.name])

    def read(self, tuned: Tuned) -> Tensor:
        return self.masters[tuned.name]

    def write(self, tuned: Tuned, span: slice, values: Tensor, key: int) -> None:
        self.masters[tuned.name][span].copy_(values)
        tuned.flat[span].copy_(values)

    def restore(self, tuned: Tuned, values: Tensor) -> None:
        self.write(tuned, slice(0, values.numel()), values, key=0)


STORES: dict[str, Callable[[Sequence[Tuned]], Store]] = {"inference": InferenceStore, "master": MasterStore}


class Weights:
    """The tuned parameters of a model, how they are probed, and how they move."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], *, geometry: Geometry, rule: UpdateRule, store: str = "inference"
    ) -> None:
        if store not in STORES:
            raise unknown("weight store", store, STORES)
        self.tuned = find_tuned(model, names)
        self.geometry = geometry
        self.rule = rule
        self._store = STORES[store](self.tuned)
        self._state = {t.name: rule.init(t.flat) for t in self.tuned}
        self._open = False

    @property
    def count(self) -> int:
        """How many numbers are tuned."""
        return sum(t.parameter.numel() for t in self.tuned)

    @contextmanager
    def at(self, probe: Probe) -> Iterator[None]:
        """While open, the model computes at theta + scale * d * z(key); afterwards every bit is as it was."""
        if self._open:
            raise RuntimeError("A probe is open already: probes do not nest.")
        self._open = True
        try:
            with torch.no_grad():
                self._store.open(probe, self.geometry)
                yield
        finally:
            with torch.no_grad():
                self._store.close()
            self._open = False

    def stacked(self, probes: Sequence[Probe]) -> dict[str, Tensor]:
        """Every tuned tensor at every probe, float32 [len(probes), *shape]: for members evaluated in one batch."""
        keys = list(dict.fromkeys(p.key for p in probes))
        rows = torch.tensor([keys.index(p.key) for p in probes])
        result = {}
        for t in self.tuned:
            device = t.parameter.device
            scales = torch.tensor([p.scale * self.geometry.gain(t.name) for p in probes], device=device)
            z = self.geometry.directions(keys, t.name, range(t.parameter.numel()), device)[rows.to(device)]
            result[t.name] = (self._store.read(t) + scales[:, None] * z).view(len(probes), *t.parameter.shape)
        return result

    @torch.no_grad()
    def ascend(self, t: int, gradient: ProjectedGradient) -> None:
        """Step number `t`: theta <- decay * theta + d * rule(sum_k c_k z_k), in float32, tensor by tensor."""
        if self._open:
            raise RuntimeError("A probe is open: leave it before the update.")
        for tuned in self.tuned:
            for start in range(0, tuned.parameter.numel(), PIECE):
                self._ascend_piece(t, gradient, tuned, slice(start, min(start + PIECE, tuned.parameter.numel())))

    def _ascend_piece(self, t: int, gradient: ProjectedGradient, tuned: Tuned, span: slice) -> None:
        total = torch.zeros(span.stop - span.start, device=tuned.parameter.device)
        for key, coefficient in zip(gradient.keys, gradient.coefficients.tolist(), strict=True):
            if coefficient != 0.0:
                self.geometry.axpy(total, total, key, tuned.name, coefficient, span.start)
        state = tuple(s[span] for s in self._state[tuned.name])
        step = self.rule.step(t, total, state).mul_(self.geometry.gain(tuned.name))
        values = self._store.read(tuned)[span].float() * self.rule.decay(t) + step
        self._store.write(tuned, span, values, gradient.key)

    def fingerprint(self) -> str:
        """SHA-256 of the tuned weights at rest: names, dtypes, shapes and bits."""
        digest = sha256()
        for t in self.tuned:
            values = self._store.read(t)
            digest.update(f"{t.name} {values.dtype} {tuple(t.parameter.shape)};".encode())
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the tuned weights at rest, in the store's dtype, by name."""
        return {t.name: self._store.read(t).clone().view(t.parameter.shape) for t in self.tuned}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts the tuned weights to `values` (as `state_dict` gives them), bit for bit; the rule's state stays."""
        for t in self.tuned:
            self._store.restore(t, values[t.name].to(t.parameter.device).view(-1))
