"""A limit on the time of a function that runs in this process."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any

from zo_objectives.language.culprits import where
from zo_objectives.language.objective import Examples, Failure
from zo_objectives.language.outputs import Outputs

Task = tuple["Future[Any]", Callable[[], Any]]


class Runner:
    """One thread in which a function runs, and is left behind when it takes too long."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] | None = None

    def call(self, work: Callable[[], Any], seconds: float) -> tuple[bool, Any]:
        """Whether `work` ended in time, and its result. The thread of one that did not is given up."""
        if self._tasks is None:
            self._tasks = SimpleQueue()
            threading.Thread(target=_serve, args=(self._tasks,), name="zo-objectives-score", daemon=True).start()
        tasks, future = self._tasks, Future[Any]()
        tasks.put((future, partial(copy_context().run, work)))
        try:
            return True, future.result(seconds)
        except BaseException as error:
            if future.done():
                raise  # the function's own
            self._tasks = None
            tasks.put(None)
            if isinstance(error, TimeoutError):
                return False, None
            raise


def _serve(tasks: "SimpleQueue[Task | None]") -> None:
    while (task := tasks.get()) is not None:
        future, work = task
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)


def in_time(
    runner: Runner, seconds: float, name: str, work: Callable[..., Any], outputs: Outputs, examples: Examples
) -> Any:
    """`work`'s result on a batch. Raises Failure where it takes more than so many seconds."""
    ended, value = runner.call(partial(work, outputs, examples), seconds)
    if not ended:
        raise too_late(name, seconds, outputs, examples)
    return value


def too_late(name: str, seconds: float, outputs: Outputs, examples: Examples) -> Failure:
    return Failure(
        f"Objective {name!r} took more than {seconds:g} s on a batch of {len(examples)} ({where(outputs, examples)})."
        " Raise its timeout or make it faster.",
        name,
        examples[0].id if examples else None,
    )
