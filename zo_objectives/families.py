"""Families of methods: their usual order on a page, and which form of which a label is."""

from itertools import chain

from zo_objectives.methods import PROBING, stages

GROUPS = {  # of the methods, in their usual order; everything else after them
    "no training": ("zero-shot", "calibrated", "icl"),
    "probing": ("lp",),
    "backprop": ("ft", "grpo"),
    "zeroth-order": ("best-of-n", "mezo-ce", "zo", "zo-ce"),
}
ORDER = tuple(chain(*GROUPS.values()))
FORWARD = set(ORDER) - set(GROUPS["backprop"])  # the methods that take nothing but forward passes of the model
UNTUNED = (*GROUPS["no training"], "lp")  # methods for which objective and tuned parameters mean nothing
SEEDLESS = ("zero-shot", "calibrated")  # methods for which one seed is as good as many


def base(method: str) -> str:
    """The name that a label begins with: `zo:lora` of `zo:lora · accuracy`."""
    return method.partition(" · ")[0]


def families(method: str) -> list[str]:
    """The methods that a label is a chain of: `ft` and `zo` of `ft:lora+zo:head`."""
    return [stage.partition(":")[0] for stage in stages(base(method))]


def family(method: str) -> str:
    """The method that a label is a form of, the last one of a chain: `zo` of `zo:lora`, `ft+zo` and `zo · accuracy`."""
    return families(method)[-1]


def forward_only(method: str) -> bool:
    """Whether a method, and in a chain every one, takes nothing but forward passes of the model."""
    return FORWARD.issuperset(families(method))


def told(method: str) -> str:
    """What is said of a form of zo behind `tuned on accuracy`: by what means, and from where on."""
    before = "+".join(stages(base(method))[:-1])
    passes = " with forward passes only"
    if not before:
        return passes
    ending = ", from where linear probing ends" if before == PROBING else f", from where {before} ends"
    return (passes if forward_only(method) else " with forward passes") + ending


def rank(method: str) -> tuple[int, int, str]:
    """Where a method stands: the usual order first, then by name; forms of a method stand beside it, chains after them."""
    place = ORDER.index(family(method)) if family(method) in ORDER else len(ORDER)
    return place, len(families(method)), method


def group(method: str) -> str:
    """The title that a method stands under."""
    return next((title for title, names in GROUPS.items() if family(method) in names), "other")
