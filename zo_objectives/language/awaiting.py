"""Asynchronous functions, called from plain code: their awaitables run together on one event loop in a thread of its own."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Sequence
from functools import cache
from typing import Any


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="zo-objectives-async", daemon=True).start()
    return loop


def settled(value: Any) -> Any:
    """`value`, or what it comes to where it is to be awaited."""
    return together([value])[0]


def together(values: Sequence[Any]) -> list[Any]:
    """The same of several, awaited at the same time."""
    waiting = [v for v in values if inspect.isawaitable(v)]
    if not waiting:
        return list(values)
    future = asyncio.run_coroutine_threadsafe(_all(waiting), _loop())
    try:
        found = iter(future.result())
    except BaseException:
        future.cancel()
        raise
    return [next(found) if inspect.isawaitable(v) else v for v in values]


async def _all(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    return list(await asyncio.gather(*waiting))
