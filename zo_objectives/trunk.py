"""The trunk: layers below everything that is tuned. Their output is computed once a sequence and fed in from then on.

The model's own forward runs either way: layers below the cut hand on what they get and the stored hidden states enter the
first module above it, so masks, positions and everything above are the family's own code, and the result is exact up to
float reordering.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zo_objectives.errors import InputError
from zo_objectives.language.anatomy import Anatomy, anatomy
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.passes import Padded, Pass, micro_batches, pad
from zo_objectives.language.sheet import Ids
from zo_objectives.states import States


class _Skip(nn.Module):
    """A layer that hands on what it gets; whatever else a model asks of it, the one that it stands for answers."""

    def __init__(self, layer: nn.Module, as_tuple: bool) -> None:
        nn.Module.__init__(self)
        self.as_tuple = as_tuple
        self.__dict__["layer"] = layer  # no module of this one's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: Tensor, *inputs: Any, **named: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


class _Reached(Exception):
    """The forward pass has come to the cut."""


class Trunk:
    """Hidden states entering layer `cut`, from 0 (what the embedding gives) to depth (entering the final norm).

    Every sequence is run once; its states are kept, at most `limit` bytes of them in memory (see `states`).
    """

    def __init__(self, lm: LanguageModel, cut: int, limit: int = 1 << 30) -> None:
        self.lm, self.cut, self.limit = lm, cut, limit
        self.where: Anatomy = anatomy(lm.model)
        self.kept = States(limit)
        self.first: dict[Ids, int] = {}  # the number of a sequence's first state
        self._as_tuple = False

    @property
    def target(self) -> nn.Module:
        """The first module above the cut."""
        return self.where.norm if self.cut == self.where.depth else self.where.layers[self.cut]

    @torch.no_grad()
    def run(self, batch: Padded, **given: Any) -> Tensor:
        """Hidden states [B, T, d] at the cut, by a forward pass that stops there, `given` a past or (as it is) none.

        Raises InputError for a model that hands on other states than one a token, or has no norm behind its layers.
        """
        found, passed = list[Tensor](), list[bool]()
        name = type(self.lm.model).__name__

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            self._as_tuple = isinstance(output, tuple)

        def went(module: nn.Module, inputs: Any, output: Any) -> None:
            passed.append(True)

        def catch(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            if self.cut and not passed:  # a norm that is called on embeddings too
                return
            found.append(inputs[0] if inputs else named["hidden_states"])
            raise _Reached

        handles = [
            self.where.layers[0].register_forward_hook(note),
            self.target.register_forward_pre_hook(catch, with_kwargs=True),
            *([self.where.layers[self.cut - 1].register_forward_hook(went)] if self.cut else []),
        ]
        try:
            self.lm.model(input_ids=batch.ids, attention_mask=batch.mask, **(given or self.lm.uncached))
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise InputError(
                f"{name}: {self.where.norm_name!r} is no norm behind its layers. Use tune=all or pattern:REGEX."
            )
        if found[0].dim() != 3 or found[0].shape[:2] != batch.ids.shape:
            raise InputError(f"{name}: hidden states {tuple(found[0].shape)} are not one a token. Use tune=all.")
        return found[0]

    def states(self, work: Pass, sequences: Sequence[Ids]) -> Tensor:
        """Hidden states [B, T, d] at the cut for a pass over `sequences`, zero where it is padded."""
        rows = [sequences[r] for r in work.batch.rows]
        self._keep([r for r in dict.fromkeys(rows) if r not in self.first])
        states = self.kept.take(np.concatenate([np.arange(self.first[r], self.first[r] + len(r)) for r in rows]))
        padded = states.new_zeros(*work.batch.ids.shape, states.shape[-1])
        padded[work.batch.mask.bool()] = states
        return padded

    def _keep(self, new: Sequence[Ids]) -> None:
        """Runs sequences and stores their states, one token after another."""
        for group in micro_batches(new):
            batch = pad(new, group, self.lm.padding, self.lm.device)
            first = self.kept.append(self.run(batch)[batch.mask.bool()]).start
            lengths = [len(new[r]) for r in group]
            starts = first + np.cumsum([0, *lengths[:-1]])
            self.first.update(zip((new[r] for r in group), starts.tolist(), strict=True))

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """While open, the model's layers below the cut do nothing and `states` enter the first module above it.

        For one forward pass. Raises InputError in it for a model that goes through its layers more than once.
        """

        def enter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return ((states, *inputs[1:]), named) if inputs else (inputs, named | {"hidden_states": states})

        parent, _, attribute = self.where.layers_name.rpartition(".")
        owner = self.lm.model.get_submodule(parent)
        went = list[bool]()

        def once(module: nn.Module, inputs: Any) -> None:
            if went:
                raise InputError(f"{type(self.lm.model).__name__} goes through its layers more than once. Use tune=all.")
            went.append(True)

        skipped = [_Skip(layer, self._as_tuple) for layer in self.where.layers[: self.cut]]
        for layer in skipped[:1]:
            layer.register_forward_pre_hook(once)
        handle = self.target.register_forward_pre_hook(enter, with_kwargs=True)
        setattr(owner, attribute, nn.ModuleList([*skipped, *self.where.layers[self.cut :]]))
        try:
            yield
        finally:
            setattr(owner, attribute, self.where.layers)
            handle.remove()
