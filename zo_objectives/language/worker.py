"""The other end of workers.py: a process that scores what it is sent."""

import os
import pickle
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zo_objectives.language.context import scoring
from zo_objectives.language.objective import Objective
from zo_objectives.language.outputs import Example


def serve(handle: int) -> None:
    """Answers requests until the pipe is closed; Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pipe = Connection(handle)
    try:
        objective = _ordered(*pipe.recv())
    except Exception as error:
        _answer(pipe, False, f"could not be made in a worker process: {type(error).__name__}: {error}.")
        return
    _answer(pipe, True, None)
    examples: list[Example] = []
    while True:
        try:
            what, outputs, given, context = pipe.recv()
        except EOFError:
            return
        examples = examples if given is None else given
        try:
            with scoring(context.step, context.steps, context.tokenize):
                if what == "score":
                    value: Any = objective.bound(examples)(outputs)
                else:
                    assert objective.samples is not None
                    value = objective.samples(outputs, examples)
            _answer(pipe, True, value)
        except Exception as error:
            _answer(pipe, False, error)


def _ordered(how: str, *what: Any) -> Objective:
    if how == "name":
        from zo_objectives.language.resolve import plainly

        name, folder = what
        return plainly(name, Path(folder))
    found: Objective = pickle.loads(what[0])
    return found


def _answer(pipe: Connection, good: bool, value: Any) -> None:
    """Sends a result or an exception, which goes as its text where it cannot be pickled."""
    try:
        pipe.send((good, value))
    except Exception:
        pipe.send((False, f"raised {type(value).__name__}: {value}"))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
