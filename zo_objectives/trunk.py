"""The trunk: layers below everything that is tuned. Their output is computed once an example and fed in from then on.

The model's own forward runs either way: layers below the cut are replaced by one that hands in the stored hidden states, so
masks, positions and everything above are the family's own code, and the result is exact up to float reordering.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from zo_objectives.anatomy import Anatomy, anatomy
from zo_objectives.hf import CausalLM, Pass
from zo_objectives.sheet import Ids


class _Inject(nn.Module):
    """A layer that returns given hidden states."""

    def __init__(self, states: Tensor, as_tuple: bool) -> None:
        nn.Module.__init__(self)
        self.states, self.as_tuple = states, as_tuple

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return (self.states,) if self.as_tuple else self.states


class _Skip(nn.Module):
    """A layer that hands on what it gets."""

    def __init__(self, as_tuple: bool) -> None:
        nn.Module.__init__(self)
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Tensor, *inputs: Any, **named: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


class _Reached(Exception):
    """The forward pass has come to the cut."""


class Trunk:
    """Hidden states entering layer `cut` (entering the final norm, for cut = depth), stored by token sequence.

    At most `limit` bytes are stored; what does not fit is computed again each time.
    """

    def __init__(self, lm: CausalLM, cut: int, limit: int = 1 << 30) -> None:
        self.lm, self.cut, self.limit = lm, cut, limit
        self.where: Anatomy = anatomy(lm.model)
        self.stored: dict[Ids, Tensor] = {}
        self.bytes = 0
        self._as_tuple = False

    @property
    def target(self) -> nn.Module:
        """The first module above the cut."""
        return self.where.norm if self.cut == self.where.depth else self.where.layers[self.cut]

    def run(self, work: Pass) -> Tensor:
        """Hidden states [B, T, d] at the cut, by a forward pass that stops there."""
        found: list[Tensor] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)

        def catch(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.append(inputs[0] if inputs else named["hidden_states"])
            raise _Reached

        handles = [
            self.where.layers[0].register_forward_hook(note),
            self.target.register_forward_pre_hook(catch, with_kwargs=True),
        ]
        try:
            self.lm.model(input_ids=work.batch.ids, attention_mask=work.batch.mask, use_cache=False)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found[0]

    def states(self, work: Pass, sequences: Sequence[Ids]) -> Tensor:
        """Hidden states [B, T, d] at the cut for a pass over `sequences`, from the store where they are there."""
        rows = [sequences[r] for r in work.batch.rows]
        if not all(r in self.stored for r in rows):
            fresh = self.run(work)
            for row, state in zip(rows, fresh, strict=True):
                if row not in self.stored and self.bytes + state[: len(row)].nbytes <= self.limit:
                    self.stored[row] = state[: len(row)].clone()
                    self.bytes += self.stored[row].nbytes
            return fresh
        sample = self.stored[rows[0]]
        padded = sample.new_zeros(*work.batch.ids.shape, sample.shape[-1])
        for i, row in enumerate(rows):
            padded[i, : len(row)] = self.stored[row]
        return padded

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """While open, the model's layers below the cut are replaced by `states`."""
        parent, _, attribute = self.where.layers_name.rpartition(".")
        owner = self.lm.model.get_submodule(parent)
        below = [_Inject(states, self._as_tuple), *[_Skip(self._as_tuple) for _ in range(self.cut - 1)]]
        setattr(owner, attribute, nn.ModuleList([*below, *self.where.layers[self.cut :]]))
        try:
            yield
        finally:
            setattr(owner, attribute, self.where.layers)
