"""Who makes a study's runs: this process, or several with one thread each. A worker takes a group of runs at a time.

A group's runs begin at the same model and examples, so that they share a workbench. What a killed worker was at is taken up
again by whoever gets that run next (see run.py).
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError, RunError
from zo_objectives.run import Earlier, execute
from zo_objectives.workbench import Workbench


class Order(Protocol):
    """A run to be made in a folder."""

    @property
    def config(self) -> RunConfig: ...
    @property
    def folder(self) -> Path: ...
    @property
    def earlier(self) -> Earlier: ...


class Outcome(NamedTuple):
    """How a run ended: with an error in words, or none."""

    folder: Path
    error: str = ""


Take = Callable[[], Sequence[Order] | None]  # the next group; None while there is none
Note = Callable[[Outcome], None]


def work(groups: Iterable[Sequence[Order]], *, show: bool) -> Iterator[Outcome]:
    """Makes the runs of the groups in turn; one that cannot be made is told, and the next begins."""
    bench: Workbench | None = None
    for order in chain.from_iterable(groups):
        try:
            bench = bench.fitted(order.config) if bench is not None else None
            if bench is None:
                bench = Workbench.open(order.config)
            execute(order.config, order.folder, bench=bench, show=show, earlier=order.earlier)
        except (InputError, RunError) as error:
            yield Outcome(order.folder, str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            bench = None
            yield Outcome(order.folder, f"Memory ran out ({str(error).partition('.')[0]}). Take a smaller batch or model.")
        else:
            yield Outcome(order.folder)


def alone(take: Take, note: Note, *, show: bool) -> None:
    """All groups in this process."""
    for outcome in work(iter(take, None), show=show):
        note(outcome)


def together(take: Take, note: Note, count: int) -> None:
    """All groups in `count` processes, which end with this call, however it ends. Raises RunError where one is lost."""
    with _crew(count) as idle:
        left = dict[Connection, int]()  # runs of the group that a worker is at
        while True:
            while idle and (group := take()) is not None:
                _send(idle[-1], group)
                left[idle.pop()] = len(group)
            if not left:
                return
            for worker in wait(list(left)):
                assert isinstance(worker, Connection)
                note(_heard(worker))
                left[worker] -= 1
                if not left[worker]:
                    del left[worker]
                    idle.append(worker)


PATIENCE = 10.0  # seconds in which a worker may end by itself
LOST = "A worker ended before its run did; where memory is short, give fewer --jobs."


def _send(worker: Connection, group: Sequence[Order]) -> None:
    try:
        worker.send(tuple(group))
    except OSError as error:
        raise RunError(LOST) from error


def _heard(worker: Connection) -> Outcome:
    try:
        outcome: Outcome = worker.recv()
    except (EOFError, OSError) as error:
        raise RunError(LOST) from error
    return outcome


@contextmanager
def _crew(count: int) -> Iterator[list[Connection]]:
    """So many idle workers, each by the connection to it."""
    context = multiprocessing.get_context("spawn")
    workers, connections = list[BaseProcess](), list[Connection]()
    try:
        with _environment(OMP_NUM_THREADS="1"), _deaf():
            for _ in range(count):
                ours, theirs = context.Pipe()
                started = context.Process(target=_serve, args=(theirs,), name="zo-objectives-study")
                started.start()
                workers.append(started)
                connections.append(ours)
                theirs.close()
        yield list(connections)
        workers[:] = _dismissed(workers, connections)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in _dismissed(workers, connections):
            worker.kill()
            worker.join()


def _dismissed(workers: list[BaseProcess], connections: list[Connection]) -> list[BaseProcess]:
    """The workers that are still there, some seconds after the connections to them were closed."""
    for connection in connections:
        connection.close()
    until = time.monotonic() + PATIENCE
    for worker in workers:
        worker.join(max(0.0, until - time.monotonic()))
    return [worker for worker in workers if worker.is_alive()]


@contextmanager
def _environment(**given: str) -> Iterator[None]:
    """Environment variables while processes are started, which read them before anything else."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C is not heard while open, nor by processes started then; only where a signal can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection) -> None:
    """A worker's whole life; Ctrl-C is for who started it, and when that is gone, so is the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # what was taken is given back
    torch.set_num_threads(1)
    try:
        for outcome in work(iter(connection.recv, None), show=False):
            connection.send(outcome)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
