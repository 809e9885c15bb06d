"""Weights: the one owner of the tuned numbers. Everything else is pure."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError, unknown
from zo_objectives.search.estimators import Part, Probe, ProjectedGradient
from zo_objectives.search.geometry import Geometry, InPart, pieces, rows_in
from zo_objectives.search.layers import Layers
from zo_objectives.search.rules import UpdateRule
from zo_objectives.search.stores import STORES
from zo_objectives.search.tuned import Tuned, find_tuned

PIECE = 1 << 20  # elements updated at a time on a CPU, which bounds the scratch memory of a step
ELSEWHERE = 32  # times as many on other devices, where a call costs more than what it does to a small piece
WHOLE = Part(0, 1)  # every row


class Realised(NamedTuple):
    """What became of a step in the store's precision: of its elements that are not 0, the share that moved a weight, and the
    cosine between what was meant and what was done. Both 1 where nothing was lost; nan where nothing was meant or done."""

    applied_frac: float
    cosine: float


class _Sums:
    """Counts and inner products of a step, meant (a) and done (b)."""

    def __init__(self) -> None:
        self.meant, self.moved, self.aa, self.ab, self.bb = 0, 0, 0.0, 0.0, 0.0

    def add(self, meant: Tensor, done: Tensor) -> None:
        self.meant += int(torch.count_nonzero(meant))
        self.moved += int(torch.count_nonzero((done != 0) & (meant != 0)))
        a, b = meant.double(), done.double()
        self.aa, self.ab, self.bb = self.aa + float(a @ a), self.ab + float(a @ b), self.bb + float(b @ b)

    def realised(self) -> Realised:
        size = math.sqrt(self.aa) * math.sqrt(self.bb)
        return Realised(self.moved / self.meant if self.meant else math.nan, self.ab / size if size else math.nan)


class Weights:
    """The tuned parameters of a model, how they are probed, and how they move.

    `layers` puts tensors into groups: for layer-wise sizes (MeZO, appendix B), and for estimators that take turns.
    Raises InputError for names, dtypes, stores and combinations that cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        geometry: Geometry,
        rule: UpdateRule,
        store: str = "inference",
        layers: Layers | None = None,
    ) -> None:
        if store not in STORES:
            raise unknown("weight store", store, STORES)
        if rule.observe is not None and not geometry.signs:
            raise InputError("This update rule is for directions of signs: use Dense(Law.RADEMACHER) or LowRank(1).")
        self.tuned = find_tuned(model, names)
        if layers is not None and (strange := set(self.tuned_names) - set(layers.groups)):
            raise InputError(
                f"Parameter {min(strange)!r} is in no group of the layers: make them by_layer(names) of all names."
            )
        self.layers = layers
        self.rule = rule
        self.store = STORES[store](self.tuned)
        self.sizes = np.ones(self.layers.count if self.layers else 0, dtype=np.float32)
        self._given = self.geometry = geometry
        self._state = {t.name: rule.init(t.flat) for t in self.tuned}
        self._ages = dict.fromkeys(self.tuned_names, 0)
        self._past: deque[ProjectedGradient] = deque(maxlen=rule.window)
        self._start = {t.name: t.flat.clone() for t in self.tuned} if rule.pull else {}
        self._open = False

    @property
    def tuned_names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.tuned)

    @property
    def count(self) -> int:
        """How many numbers are tuned."""
        return sum(t.parameter.numel() for t in self.tuned)

    def resize(self, sizes: Sequence[float]) -> None:
        """Gives every group its size d (see layers.py), from the next probe on. Raises InputError for another number."""
        if self.layers is None or len(sizes) != self.layers.count:
            raise InputError(f"{len(sizes)} layer sizes for weights with {self.layers.count if self.layers else 0} groups.")
        self.sizes = np.asarray(sizes, dtype=np.float32)
        self.geometry = self.layers.scaled(self._given, self.sizes)

    def members_of(self, group: int | None) -> tuple[Tuned, ...]:
        """The tensors of a group; all for None."""
        if group is None:
            return self.tuned
        if self.layers is None:
            raise InputError("A probe of one group needs weights with layers: Weights(..., layers=by_layer(names)).")
        return tuple(t for t in self.tuned if self.layers.groups[t.name] == group)

    @contextmanager
    def at(self, probe: Probe) -> Iterator[None]:
        """While open, the model computes at theta + scale * d * z(key); afterwards every bit is as it was."""
        with self.opened(), torch.no_grad():
            try:
                if probe.scale != 0:
                    geometry = InPart(self.geometry, *probe.part) if probe.part else self.geometry
                    self.store.open(self.members_of(probe.group), probe, geometry)
                yield
            finally:
                self.store.close()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """While open, no probe can be opened and nothing moves."""
        if self._open:
            raise RuntimeError("A probe is open already: probes do not nest.")
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def stacked(self, probes: Sequence[Probe]) -> dict[str, Tensor]:
        """Every tuned tensor at every probe, float32 [len(probes), *shape]: for members evaluated in one batch."""
        keys = list(dict.fromkeys(p.key for p in probes))
        rows = torch.tensor([keys.index(p.key) for p in probes])
        groups = {p.group for p in probes}
        held = {g: {t.name for t in self.members_of(g)} for g in groups}
        result = {}
        for t in self.tuned:
            device, gain = t.parameter.device, self.geometry.probe_gain(t.name)
            scales = torch.tensor([p.scale * gain if t.name in held[p.group] else 0.0 for p in probes], device=device)
            span = range(t.parameter.numel())
            z = self.geometry.directions(keys, t.leaf, span, device)[rows.to(device)]
            if any(p.part for p in probes):
                first, of = torch.tensor([p.part or WHOLE for p in probes], device=device).T[:, :, None]
                z = z * (rows_in(t.leaf, span, device) % of == first)
            result[t.name] = (self.store.read(t) + scales[:, None] * z).view(len(probes), *t.parameter.shape)
        return result

    @torch.no_grad()
    def ascend(self, t: int, gradient: ProjectedGradient, *, watch: bool = False) -> Realised | None:
        """Step number `t`: theta <- decay * theta + d * rule(sum_k c_k z_k), in float32, tensor by tensor.

        With `watch`, says what became of it (at the cost of a few more passes).
        """
        if self._open:
            raise RuntimeError("A probe is open: leave it before the update.")
        sums = _Sums() if watch else None
        for tuned in self.members_of(gradient.group):
            age = self._ages[tuned.name]
            if self.rule.observe is not None:
                self.rule.observe(_only(gradient), self._state[tuned.name])
            if sums is not None or not self._ascend_at_once(t, gradient, tuned):
                size = PIECE if tuned.parameter.device.type == "cpu" else ELSEWHERE * PIECE
                for start, stop in pieces(tuned.parameter.numel(), size):
                    self._ascend_piece(t, age, gradient, tuned, slice(start, stop), sums)
            self._ages[tuned.name] = age + 1
        self._past.append(gradient)
        return sums.realised() if sums is not None else None

    def _ascend_at_once(self, t: int, gradient: ProjectedGradient, tuned: Tuned) -> bool:
        """The same bits as in pieces, in one pass over memory: for one direction of signs, where c * z is exact."""
        if gradient.parts:
            return False
        theta = self.store.own(tuned)
        moving = [(k, c) for k, c in zip(gradient.keys, gradient.coefficients, strict=True) if c != 0]
        if theta is None or not self.rule.linear or not self.geometry.signs or len(moving) > 1 or self.rule.pull:
            return False
        if (decay := self.rule.decay(t)) != 1.0:
            theta.mul_(decay)
        for key, c in moving:
            step = np.float32(c) * np.float32(self.rule.rate(t)) * np.float32(self.geometry.step_gain(tuned.name))
            self.geometry.axpy(theta, theta, key, tuned.leaf, float(step))
        self.store.moved(tuned)
        return True

    def _gradient_piece(self, gradient: ProjectedGradient, tuned: Tuned, span: slice) -> Tensor:
        """sum_k c_k z_k in elements `span`."""
        total = torch.zeros(span.stop - span.start, device=tuned.parameter.device)
        if gradient.parts:
            elements = range(span.start, span.stop)
            part = rows_in(tuned.leaf, elements, total.device) % gradient.parts
            shares = torch.from_numpy(gradient.coefficients.reshape(-1, gradient.parts)).to(total.device)
            for key, share in zip(gradient.keys, shares, strict=True):
                total += self.geometry.directions([key], tuned.leaf, elements, total.device)[0] * share[part]
            return total
        for key, coefficient in zip(gradient.keys, gradient.coefficients.tolist(), strict=True):
            if coefficient != 0.0:
                self.geometry.axpy(total, total, key, tuned.leaf, coefficient, span.start)
        return total

    def _past_pieces(self, age: int, tuned: Tuned, span: slice) -> Iterator[tuple[int, Tensor]]:
        """(age, gradient) in elements `span` of the steps before, made again from their keys."""
        group = self.layers.groups[tuned.name] if self.layers is not None else None
        taken = [g for g in self._past if g.group is None or g.group == group]
        for then, gradient in enumerate(taken, age - len(taken)):
            yield then, self._gradient_piece(gradient, tuned, span)

    def _ascend_piece(
        self, t: int, age: int, gradient: ProjectedGradient, tuned: Tuned, span: slice, sums: _Sums | None
    ) -> None:
        total = self._gradient_piece(gradient, tuned, span)
        state = tuple(s[span] if s.dim() else s for s in self._state[tuned.name])
        past = self._past_pieces(age, tuned, span) if self.rule.window else ()
        step = self.rule.step(age, t, total, state, past).mul_(self.geometry.step_gain(tuned.name))
        before = self.store.read(tuned)[span].float()
        values = before * self.rule.decay(t)
        if self.rule.pull:
            start = self._start[tuned.name][span].float()
            values = (values - start).mul_(1.0 - self.rule.rate(t) * self.rule.pull).add_(start)
        values.add_(step)
        if sums is not None:
            before = before.clone()
        self.store.write(tuned, span, values, gradient.key)
        if sums is not None:
            sums.add(values - before, self.store.read(tuned)[span].float() - before)

    def fingerprint(self) -> str:
        """SHA-256 of the tuned weights at rest: names, dtypes, shapes and bits."""
        digest = sha256()
        for t in self.tuned:
            values = self.store.read(t)
            digest.update(f"{t.name} {values.dtype} {tuple(t.parameter.shape)};".encode())
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the tuned weights at rest, in the store's dtype, by name."""
        return {t.name: self.store.read(t).clone().view(t.parameter.shape) for t in self.tuned}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Puts the tuned weights to `values` (as `state_dict` gives them), bit for bit; the rule's state stays."""
        for t in self.tuned:
            self.store.restore(t, values[t.name].to(t.parameter.device).view(-1))


def _only(gradient: ProjectedGradient) -> float:
    if len(gradient.coefficients) != 1:
        raise InputError(
            f"This update rule takes one direction a step, not {len(gradient.coefficients)}. Use adam with moments=stored."
        )
    return float(gradient.coefficients[0])
