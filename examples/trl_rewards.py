"""Rewards as TRL's trainers take them. `brief` reads texts; `polite` reads messages too (?format=conversational)."""

from collections.abc import Callable


def brief(completions: list[str], log_metric: Callable[[str, float], None], **columns: object) -> list[float]:
    """1 for up to ten words, less for more."""
    sizes = [len(text.split()) for text in completions]
    log_metric("words", sum(sizes) / len(sizes))
    return [min(1.0, 10 / max(size, 1)) for size in sizes]


async def polite(completions: list[str] | list[list[dict[str, str]]], **columns: object) -> list[float | None]:
    """Whether it says please; not applicable to an empty completion."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float("please" in text.lower()) if text else None for text in texts]
