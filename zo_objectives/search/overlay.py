"""A model under the weights of many members at once: one forward pass, the base's products shared by all.

A member is a probe, and a batch has `rows` rows for each of P members, member after member. Where a matrix W [m, n] moves
along z_i = A_i B_i^T, member i's rows x_i become

    y_i = x_i W^T + s_i (x_i B_i) A_i^T        (EGGROLL: Sarkar et al. 2025, "Evolution Strategies at the Hyperscale")

so the product with W is one for all, and what is a member's own costs (m + n) r a row instead of m n. Vectors, such as norms
and biases, are kept for each member.

Modules are not looked at, only the functions of torch that they call: one that gets a tuned parameter is computed for every
member by the table in operators.py, and any other is refused by name. So is whatever has another number of rows than a batch
of all members has (experts, packed sequences, pooled states): rows are never guessed. What the model has to see to is that
a row does not depend on its neighbours (law 6) and keeps its place; `members.verify` finds out by numbers.

In float32 members compute what they compute one after another, up to the order of sums. In 16 bit, W + s z is not rounded to
the model's dtype (a store rounds it): the two products are added instead.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode, resolve_name

from zo_objectives.errors import InputError
from zo_objectives.search.estimators import Probe
from zo_objectives.search.tuned import Tuned
from zo_objectives.search.weights import Weights

CURE = "Use members=sequential, or tune something else."
Function = Callable[..., Any]


class Vector(NamedTuple):
    """A vector, or a number, as each member has it."""

    name: str
    values: Tensor  # [P, 1, d]; d is 1 for a number


class Matrix(NamedTuple):
    """What each member adds to a matrix [a, b]: left[i].T @ right[i]."""

    name: str
    left: Tensor  # [P, r, a]
    right: Tensor  # [P, r, b]

    @property
    def transposed(self) -> "Matrix":
        return Matrix(self.name, self.right, self.left)


Own = Vector | Matrix


def own_of(weights: Weights, probes: Sequence[Probe]) -> dict[int, Own]:
    """What is each member's own, in every tensor that any of `probes` moves, by the parameter's id. Raises InputError."""
    if any(p.part for p in probes):
        raise InputError("Members cannot be batched with rows apart. Use rows=together, or members=sequential.")
    held = {g: {t.name for t in weights.members_of(g)} for g in {p.group for p in probes}}
    result = {}
    for tuned in weights.tuned:
        gain = weights.geometry.probe_gain(tuned.name)
        scales = [p.scale * gain if tuned.name in held[p.group] else 0.0 for p in probes]
        if any(scales):
            result[id(tuned.parameter)] = _own(weights, tuned, [p.key for p in probes], scales)
    return result


def _own(weights: Weights, tuned: Tuned, keys: Sequence[int], scales: Sequence[float]) -> Own:
    """Members with the same key, such as + and -, share what is drawn; one that does not move has zeros."""
    dtype, device, moving = tuned.parameter.dtype, tuned.parameter.device, [i for i, s in enumerate(scales) if s]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys[i] for i in moving))}
    drawn = [number[keys[i]] for i in moving]
    size = torch.tensor([scales[i] for i in moving], device=device).view(-1, 1, 1)

    def spread(values: Tensor) -> Tensor:
        """[moving, ...] as [P, ...]."""
        whole = values.new_zeros(len(keys), *values.shape[1:])
        return whole.index_copy_(0, torch.tensor(moving, device=device), values)

    if len(tuned.leaf.shape) < 2:
        z = weights.geometry.directions(list(number), tuned.leaf, range(tuned.parameter.numel()), device)
        return Vector(tuned.name, (weights.store.read(tuned) + spread(size * z[drawn].unsqueeze(1))).to(dtype))
    factors = _factors(weights, tuned, list(number))
    half = size.abs().sqrt()  # in either factor, so that none is too small for 16 bits
    left = spread(factors[0].mT[drawn] * half).to(dtype)
    return Matrix(tuned.name, left, spread(factors[1].mT[drawn] * (half * size.sign())).to(dtype))


def _factors(weights: Weights, tuned: Tuned, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    if len(tuned.leaf.shape) > 2:
        raise InputError(
            f"Members cannot be batched: parameter {tuned.name!r} has {len(tuned.leaf.shape)} dimensions. {CURE}"
        )
    factors = weights.geometry.factors(keys, tuned.leaf, tuned.parameter.device)
    if factors is None:
        raise InputError(
            f"Dense noise in a matrix shares nothing between members, and {tuned.name!r} has such noise."
            " Use noise=low-rank or members=sequential."
        )
    return factors


KEEP = frozenset([Tensor.reshape, Tensor.view, Tensor.flatten, Tensor.contiguous, Tensor.to])  # rows in their order


class Overlay(TorchFunctionMode):
    """While entered, torch's functions compute with what is each member's own: see the module's text."""

    def __init__(
        self, own: Mapping[int, Own], count: int, rows: int, handlers: Mapping[Function, Function], plain: Set[Function]
    ) -> None:
        super().__init__()
        self.own, self.count, self.rows = dict(own), count, rows
        self.handlers, self.plain = handlers, plain  # functions with members' own, and those that only ask about a tensor
        self.tokens: int | None = None  # of each row in this pass, as its embedding has told
        self.by_member = False  # whether the first dimension is that of members, not of all their rows
        self.used: set[str] = set()
        self._derived: dict[Hashable, Tensor] = {}
        self._call: tuple[Function, str] | None = None  # what is computed now, for messages

    def fit(self, rows: int) -> None:
        """Begins a pass with another number of rows for each member."""
        self.rows, self.tokens = rows, None

    @property
    def total(self) -> int:
        """N = P * rows."""
        return self.count * self.rows

    @contextmanager
    def by_member_in(self, module: nn.Module) -> Iterator[None]:
        """While open, what `module` is given has a dimension of members: [P, sites, d]."""

        def turn(value: bool) -> Function:
            return lambda *_: setattr(self, "by_member", value)

        before = module.register_forward_pre_hook(turn(True))
        after = module.register_forward_hook(turn(False), always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def __torch_function__(
        self, func: Function, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is embedding:
            self._learn(args[0] if args else named["input"])
        found = self._first((*args, *named.values()))
        if found is None or func in self.plain:
            made = func(*args, **named)
            if self._picks(*args) if func is Tensor.__getitem__ else func in KEEP and hasattr(args[0], "picked"):
                made.picked = True
            return made
        self._call = func, found.name
        handler = self.handlers.get(func) or self.refuse("for which members have no rule")
        return handler(self, *args, **named)

    def _first(self, values: Sequence[Any]) -> Own | None:
        """The first tuned tensor among `values`, in lists too."""
        for value in values:
            if isinstance(value, Tensor):
                if found := self.own.get(id(value)):
                    return found
            elif isinstance(value, list | tuple) and (found := self._first(value)):
                return found
        return None

    def _picks(self, states: Tensor, index: Any) -> bool:
        """Whether the first dimension of `states[index]` is picked by numbers: anything may be in the place of a row."""
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Tensor):
                return part.dim() < 2 or len(part) != self.total
            if part is not None:
                return isinstance(part, list)
        return hasattr(states, "picked")

    def _learn(self, ids: Tensor) -> None:
        if ids.dim() == 2 and len(ids) == self.total and not self.by_member:
            self.tokens = ids.shape[1]

    def refuse(self, reason: str) -> NoReturn:
        assert self._call is not None
        func, name = self._call
        function = resolve_name(func) or getattr(func, "__name__", repr(func))
        raise InputError(f"Members cannot be batched: {function} got parameter {name!r}, {reason}. {CURE}")

    def vector(self, tensor: Tensor | None) -> Tensor | None:
        """[P, 1, d] of a tuned vector; anything else as it is."""
        found = self.own.get(id(tensor))
        if isinstance(found, Matrix):
            self.refuse("a matrix where members have vectors")
        if found is None:
            return tensor
        self.used.add(found.name)
        return found.values

    def matrix(self, tensor: Tensor) -> Matrix | None:
        """What members add to a tuned matrix; None for anything that is not tuned."""
        found = self.own.get(id(tensor))
        if isinstance(found, Vector):
            self.refuse("a vector where members have matrices")
        if found is not None:
            self.used.add(found.name)
        return found

    def split(self, states: Tensor) -> Tensor:
        """States of all members, [N, ..., d] or [N * tokens, d], as [P, rows, d]. Raises InputError for any other."""
        if id(states) in self.own:
            self.refuse("as a state")
        if hasattr(states, "picked"):
            self.refuse("with states that were picked by their numbers, in whatever order")
        if not self._fits(states):
            self.refuse(
                f"with states of shape {list(states.shape)} where {self.count} members of {self.rows} rows"
                f" have {self._expected}"
            )
        return states.reshape(self.count, -1, states.shape[-1])

    def _fits(self, states: Tensor) -> bool:
        if self.by_member or states.dim() > 2:
            return states.dim() > 2 and len(states) == (self.count if self.by_member else self.total)
        return states.dim() == 2 and len(states) == self.total * (self.tokens or 1)

    @property
    def _expected(self) -> str:
        if self.by_member:
            return f"[{self.count}, sites, d]"
        return f"[{self.total}, ..., d] or [{self.total * (self.tokens or 1)}, d]"

    def derive(self, tensor: Tensor, func: Function, *args: Hashable) -> Tensor:
        """`func(tensor, *args)`, element by element, in each member's values: a stand-in for them."""
        own = self.own[id(tensor)]
        made = self._derived.get((id(tensor), func, args))
        if made is None:
            made = func(tensor, *args)
            if made is tensor:
                return made
            if isinstance(own, Matrix):
                self.refuse("a matrix, which members have as it is")
            self._keep((id(tensor), func, args), made, Vector(own.name, func(own.values, *args)))
        return made

    def transpose(self, tensor: Tensor) -> Tensor:
        """The transpose of a tuned matrix: a stand-in for members' transposed ones."""
        own = self.own[id(tensor)]
        made = self._derived.get((id(tensor), "t"))
        if made is None:
            if isinstance(own, Vector):
                self.refuse("a vector where members have matrices")
            made = self._keep((id(tensor), "t"), tensor.t(), own.transposed)
        return made

    def _keep(self, key: Hashable, made: Tensor, own: Own) -> Tensor:
        self._derived[key] = made  # alive, so that its id is nobody else's
        self.own[id(made)] = own
        return made
