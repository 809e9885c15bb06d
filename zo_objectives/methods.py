"""The methods: what each is, what their texts stand for, such as ft:lora+zo, and the settings that follow from those."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zo_objectives.errors import InputError, unknown
from zo_objectives.settings import Settings, merge, nested


@dataclass(frozen=True)
class Kind:
    """A method: what it is, and the settings that make it so."""

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tunes: str | None = None  # the setting that `METHOD:TUNE` stands for
    loss: bool = False  # whether it needs a cross-entropy
    whole: bool = False  # whether it tunes all parameters, with no TUNE to choose

    @property
    def chains(self) -> bool:
        """Whether it begins with weights and ends with others, so that it can stand anywhere in a chain."""
        return self.tunes is not None or self.whole

    @property
    def climbs(self) -> bool:
        """Whether it is a zeroth-order search."""
        return self.tunes == "tune"


METHODS = {
    "zero-shot": Kind("the model as it is"),
    "calibrated": Kind("zero-shot, calibrated by a content-free prompt", {"scoring": "calibrated"}),
    "icl": Kind("in-context learning: demonstrations before every prompt", {"demonstrations": 32}),
    "lp": Kind("linear probing: logistic regression on the last hidden state; its strength is chosen on validation"),
    "ft": Kind(
        "backprop fine-tuning with AdamW, best of a small grid of learning rates chosen on validation",
        tunes="ft.tune",
        loss=True,
    ),
    "grpo": Kind(
        "GRPO by TRL: the policy gradient of a reward, backprop on all parameters, best of a small grid as ft", whole=True
    ),
    "best-of-n": Kind("random search: the best of as many perturbations as zo's forwards allow", tunes="tune"),
    "mezo-ce": Kind(
        "forward passes only, on cross-entropy (MeZO's objective), with the same estimator and forwards as zo",
        tunes="tune",
        loss=True,
    ),
    "zo": Kind("forward passes only, on the metric itself", tunes="tune"),
    "zo-ce": Kind(
        "forward passes only, on the metric and a share of the log-likelihood, where a metric alone is too flat",
        tunes="tune",
        loss=True,
    ),
}
PROBING = "lp"  # begins a chain, and never continues one
NEXT = re.compile(rf"\+(?=(?:{'|'.join(METHODS)})(?:[:+]|$))")  # where a chain's next stage begins


def stages(text: str) -> tuple[str, ...]:
    """The stages of a method's text: `ft:lora+zo:norms+head` is ft:lora, then zo:norms+head, since head is no method."""
    return tuple(NEXT.split(text))


def named(text: str) -> tuple[str, Settings]:
    """The method and the settings that the last stage of a method's text stands for: METHOD or METHOD:TUNE.

    Raises InputError, also for a wrong stage before it.
    """
    chain = stages(text)
    methods = [stage.partition(":")[0] for stage in chain]
    if strange := [method for method in methods if method not in METHODS]:
        raise unknown("method", strange[0], METHODS)
    kinds, parts = [METHODS[method] for method in methods], [stage.partition(":") for stage in chain]
    meant = all(not colon or (tune and kind.tunes) for (_, colon, tune), kind in zip(parts, kinds, strict=True))
    linked = all(kind.chains for kind in kinds[1:]) and (kinds[0].chains or methods[0] == PROBING)
    if not meant or (len(chain) > 1 and not linked):
        raise InputError(
            f"Method {text!r}: write METHOD, METHOD:TUNE with zo, mezo-ce, best-of-n or ft, as in ft:lora, or a chain of"
            " those, each beginning where the one before it ended, as in ft:lora+zo; a chain may begin with lp."
        )
    method, (_, colon, tune) = methods[-1], parts[-1]
    settings = merge({"method": method, "label": text if text != method else ""}, METHODS[method].settings)
    return method, merge(settings, nested(str(kinds[-1].tunes), tune)) if colon else settings


def method_settings(settings: Mapping[str, Any], text: str) -> Settings:
    """Settings for a method's text: its last stage's own, and those under `methods.<method>`, laid over `settings`.

    What is under `methods.<stage>`, as in `methods.ft:lora`, and under `methods.<text>`, as in `methods.ft+zo`, comes last.
    Those of the chain without its last stage are under `before`.
    """
    method, of_name = named(text)
    own = dict(settings)
    methods = own.pop("methods", {})
    if not isinstance(methods, Mapping) or not all(isinstance(m, Mapping) for m in methods.values()):
        raise InputError("The setting `methods` must hold one mapping for each method, as in --set methods.zo.scale=0.5.")
    for name in methods:
        named(name)
    if said := {"before", "start"} & {*own, *(key for given in methods.values() for key in given)}:
        raise InputError(
            f"The setting `{min(said)}` follows from the method's text. Write a chain, as in ft+zo; settings of its stages"
            " go under methods.ft and methods.ft+zo."
        )
    *earlier, stage = stages(text)
    found = merge(own, of_name)
    for name in (method, stage, text):
        found = merge(found, methods.get(name, {}))
    return found | ({"before": method_settings(settings, "+".join(earlier))} if earlier else {})


def in_all_stages(settings: Mapping[str, Any], **fixed: Any) -> Settings:
    """`settings`, and those of the stages before, with `fixed`."""
    before = settings.get("before")
    return {**settings, **fixed, **({"before": in_all_stages(before, **fixed)} if before else {})}
