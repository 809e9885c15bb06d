"""Processes that score: an objective is sent to them once, outputs and examples with every request.

A worker imports the function anew: by the name it was resolved from, or by pickle, which a function at the top of a module
allows and a lambda does not. It is killed, and replaced at the next request, when it takes too long.
"""

import atexit
import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

from zo_objectives.errors import InputError, RunError
from zo_objectives.language.context import Context, Known, current
from zo_objectives.language.culprits import where
from zo_objectives.language.limits import too_late
from zo_objectives.language.objective import Examples, Failure, Objective, Pending
from zo_objectives.language.outputs import Generations, Outputs

Request = tuple[str, Outputs, Examples, Context]
Task = tuple["Future[Any]", Request]
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from zo_objectives.language.worker import serve; serve({})"
LIVING: "weakref.WeakSet[_Process]" = weakref.WeakSet()


class Workers:
    """So many processes for one objective, started when they are first needed; they end with this object."""

    def __init__(self, objective: Objective, count: int, timeout: float | None = None) -> None:
        self.name, self.count, self.timeout = objective.name, count, timeout
        self.order = order_for(objective)
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._started = False
        weakref.finalize(self, _dismiss, self._tasks, count)

    def begin(self, what: str, outputs: Outputs, examples: Examples) -> Pending:
        """Asks for the objective's "score" or "samples"; what is returned waits for the answer."""
        if not self._started:
            self._started = True
            for _ in range(self.count):
                work = partial(_work, self._tasks, self.name, self.order, self.timeout)
                threading.Thread(target=work, name="zo-objectives-workers", daemon=True).start()
        future = Future[Any]()
        self._tasks.put((future, (what, outputs, examples, _portable(outputs))))
        return future.result


def order_for(objective: Objective) -> tuple[Any, ...]:
    """What tells a process which objective it is. Raises InputError where nothing can."""
    if objective.recipe is not None:
        return ("name", *objective.recipe)
    try:
        if b"__main__" in (data := pickle.dumps(objective)):
            raise pickle.PicklingError("it is in the script that was started, which they must not run again")
        return ("pickle", data)
    except Exception as error:
        raise InputError(
            f"Objective {objective.name!r} cannot be sent to worker processes ({error}): put the function at the top of a"
            " module and give it as module:function or file.py:function, or leave workers at 0."
        ) from error


def _portable(outputs: Outputs) -> Context:
    """The context without the run's tokenizer, but with what that says of these texts."""
    now = current()
    if now.tokenize is None or not isinstance(outputs, Generations):
        return Context(now.step, now.steps)
    texts = list(dict.fromkeys(outputs.texts))
    return Context(now.step, now.steps, Known(dict(zip(texts, now.tokenize(texts), strict=True))))


def _dismiss(tasks: "SimpleQueue[Task | None]", count: int) -> None:
    for _ in range(count):
        tasks.put(None)


def _work(tasks: "SimpleQueue[Task | None]", name: str, order: tuple[Any, ...], timeout: float | None) -> None:
    """One thread for one process."""
    process: _Process | None = None
    while (task := tasks.get()) is not None:
        future, request = task
        try:
            process = process or _Process(name, order)
            future.set_result(process.ask(request, timeout))
        except BaseException as error:
            if process is not None and not process.alive:
                process = None
            future.set_exception(error)
    if process is not None:
        process.kill()


class _Process:
    """A process, and the end of a pipe to it."""

    def __init__(self, name: str, order: tuple[Any, ...]) -> None:
        self.name, self.examples, self.alive = name, list[Any](), True
        self.pipe, theirs = multiprocessing.Pipe()
        handle = theirs.fileno()
        command = [sys.executable, "-c", START.format(handle), json.dumps(sys.path)]
        self.process = subprocess.Popen(command, pass_fds=[handle], stdin=subprocess.DEVNULL)
        theirs.close()
        LIVING.add(self)
        self._send(order)
        self._answer(lambda: f"Objective {name!r}: its worker process ended at its start, code {self.process.wait()}.")

    def ask(self, request: Request, timeout: float | None) -> Any:
        """The answer. Raises what the objective raised, or Failure where the process is late or ends."""
        what, outputs, examples, context = request
        known = len(examples) == len(self.examples) and all(a is b for a, b in zip(examples, self.examples, strict=True))
        self._send((what, outputs, None if known else list(examples), context))
        self.examples = list(examples)
        if timeout is not None and not self.pipe.poll(timeout):
            self.kill()
            raise too_late(self.name, timeout, outputs, examples)
        return self._answer(lambda: self._ended(outputs, examples))

    def _ended(self, outputs: Outputs, examples: Examples) -> str:
        place = where(outputs, examples)
        return f"Objective {self.name!r}: its worker process ended, code {self.process.wait()} ({place})."

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except (OSError, EOFError):
            self.kill()
            raise Failure(f"Objective {self.name!r}: its worker process has ended.", self.name) from None

    def _answer(self, ended: Callable[[], str]) -> Any:
        try:
            good, value = self.pipe.recv()
        except (OSError, EOFError):
            message = ended()
            self.kill()
            raise Failure(message, self.name) from None
        if good:
            return value
        if not isinstance(value, (InputError, RunError)):
            value = Failure(f"Objective {self.name!r} {value}", self.name)
        raise value

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.wait()
        self.pipe.close()


@atexit.register
def _kill_all() -> None:
    for process in list(LIVING):
        process.process.kill()
