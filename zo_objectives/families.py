"""Families of methods: their usual order on a page, and which form of which a label is."""

from itertools import chain

GROUPS = {  # of the methods, in their usual order; everything else after them
    "no training": ("zero-shot", "calibrated", "icl"),
    "probing": ("lp",),
    "backprop": ("ft",),
    "zeroth-order": ("mezo-ce", "zo"),
}
ORDER = tuple(chain(*GROUPS.values()))
FORWARD = set(ORDER) - set(GROUPS["backprop"])  # the methods that take nothing but forward passes of the model
UNTUNED = (*GROUPS["no training"], "lp")  # methods for which objective and tuned parameters mean nothing
SEEDLESS = ("zero-shot", "calibrated")  # methods for which one seed is as good as many
AFTER = "lp+"  # what the label of a method begins with that starts where linear probing ends


def base(method: str) -> str:
    """The name that a label begins with: `zo:lora` of `zo:lora · accuracy`."""
    return method.partition(" · ")[0]


def family(method: str) -> str:
    """The method that a label is a form of: `zo` of `zo:lora`, of `lp+zo` and of `zo · accuracy`."""
    return base(method).removeprefix(AFTER).partition(":")[0]


def rank(method: str) -> tuple[int, bool, str]:
    """Where a method stands: the usual order first, then by name; forms of a method stand beside it."""
    place = ORDER.index(family(method)) if family(method) in ORDER else len(ORDER)
    return place, method.startswith(AFTER), method


def group(method: str) -> str:
    """The title that a method stands under."""
    return next((title for title, names in GROUPS.items() if family(method) in names), "other")
