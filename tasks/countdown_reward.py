"""Countdown's verifier: is a completion an expression of the given numbers, and does it reach the target?"""

import ast
import operator
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
LONGEST = 200  # characters


def solved(completions: list[str], numbers: list[Sequence[int]], target: list[int], **columns: object) -> list[float]:
    """1 for each completion that reaches its target, else 0."""
    return [float(value(text, n) == t) for text, n, t in zip(completions, numbers, target, strict=True)]


def countdown(completions: list[str], numbers: list[Sequence[int]], target: list[int], **columns: object) -> list[float]:
    """1 where the target is reached, 0.1 for another expression of the given numbers, else 0."""
    values = [value(text, n) for text, n in zip(completions, numbers, strict=True)]
    return [0.0 if v is None else 1.0 if v == t else 0.1 for v, t in zip(values, target, strict=True)]


def value(text: str, numbers: Sequence[int]) -> Fraction | None:
    """The value of an expression of integers, + - * / and parentheses; what follows "=" is not looked at.

    None for anything else, for a division by zero, and where a number is not given or used too often.
    """
    text = text.partition("=")[0].strip()
    if len(text) > LONGEST or not re.fullmatch(r"[0-9 ()+*/-]+", text):
        return None
    used: list[int] = []
    try:
        found = _value(ast.parse(text, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return None if Counter(used) - Counter(numbers) else found


def _value(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        return Fraction(SIGNS[type(node.op)](_value(node.left, used), _value(node.right, used)))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    raise ValueError(f"{type(node).__name__} is no part of an expression")
