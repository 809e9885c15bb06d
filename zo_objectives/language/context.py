"""What a run tells scoring functions beside the batch: how far it is, and how its tokenizer cuts a text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

Tokenize = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Context:
    """The step that is scored, of how many, and the run's tokenizer (None: there is no run)."""

    step: int = 0
    steps: int = 0
    tokenize: Tokenize | None = None


NO_RUN = Context()
_CONTEXT: ContextVar[Context] = ContextVar("zo_objectives.context", default=NO_RUN)


def current() -> Context:
    return _CONTEXT.get()


@contextmanager
def scoring(step: int = 0, steps: int = 0, tokenize: Tokenize | None = None) -> Iterator[None]:
    """Within it, rewards see this step in `trainer_state` and get `completion_ids` from this tokenizer."""
    token = _CONTEXT.set(Context(step, steps, tokenize))
    try:
        yield
    finally:
        _CONTEXT.reset(token)


@dataclass(frozen=True)
class Known:
    """A tokenizer that knows some texts: what goes to a worker process in place of the run's."""

    ids: dict[str, list[int]]

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.ids[text] for text in texts]
