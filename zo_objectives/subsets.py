"""What is tuned: a subset of a model's parameters, by name; those of adapters that were put in among them.

    all            every parameter                      norms          the weights of all norms
    head           the final norm and the label rows    layers:A-B     layers A to B (from 0; B may be left out)
    features:K     label rows along the K leading directions of what the head sees: see features.py
    pattern:REGEX  parameters whose name matches        lora, prefix, prompt   adapters: see adapters.py

Joined by +, as in `norms+head`. Label rows are an addition to the output head's rows of a few tokens (the options', or the
targets'); with a tied embedding the input side keeps its own.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zo_objectives.adapters import ADAPTERS, forms
from zo_objectives.errors import InputError, unknown
from zo_objectives.language.anatomy import Anatomy, anatomy
from zo_objectives.language.hf import LanguageModel
from zo_objectives.search.geometry import root_mean_square

FEATURES = "features"  # the form that moves label rows along directions
COUNT = 48  # directions where the text names no number
FORMS = ("all", "head", "features:K", "norms", "layers:A-B", "pattern:REGEX", *ADAPTERS)
LOCATED = ("head", "features", "layers", "norms", "pattern")  # for which it pays, or is needed, to know where things are
ZERO_GAIN = 0.02  # the gain of a tensor of zeros: the usual standard deviation of a fresh weight


class LabelRows(nn.Module):
    """An output head with a tunable addition to the rows of a few tokens: logits[..., tokens] += h @ added.T.

    `rows` [tokens, d] is what is added; or, with a `basis` [directions, d], `rows` [tokens, directions] says how much of
    each direction is, beside `base` [tokens, d]. `sized` says whether what was added at the start counts in the rows' size
    (root mean square).
    """

    tokens: Tensor
    basis: Tensor | None
    base: Tensor | None
    sized = True

    def __init__(
        self, head: nn.Module, tokens: Sequence[int], basis: Tensor | None = None, base: Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)
        weight: Tensor = head.weight  # type: ignore[assignment]
        self.head = head
        width = weight.shape[1] if basis is None else len(basis)
        self.rows = nn.Parameter(weight.new_zeros(len(tokens), width), requires_grad=False)
        self.register_buffer("tokens", torch.tensor(tokens, device=weight.device), persistent=False)
        self.register_buffer("basis", None if basis is None else basis.to(weight), persistent=False)
        self.register_buffer("base", None if base is None else base.to(weight), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The head's own weight, for transformers' bookkeeping."""
        return self.head.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The head's own bias, likewise."""
        return getattr(self.head, "bias", None)

    def added(self, rows: Tensor) -> Tensor:
        """What is added to the head's rows [..., tokens, d] for `rows` [..., tokens, d or directions]."""
        whole = rows if self.basis is None else rows.to(self.basis.dtype) @ self.basis
        return whole if self.base is None else whole + self.base

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden)
        seen = hidden if self.basis is None else nn.functional.linear(hidden, self.basis)
        logits = logits.index_add(-1, self.tokens, nn.functional.linear(seen, self.rows))
        return logits if self.base is None else logits.index_add(-1, self.tokens, nn.functional.linear(hidden, self.base))


@dataclass(frozen=True)
class Subset:
    """The names of the tuned parameters, the size of each (root mean square), and the lowest level they touch."""

    names: tuple[str, ...]
    gains: dict[str, float]
    cut: int


def _layers(spec: str, anatomy: Anatomy, names: Sequence[str]) -> list[str]:
    found = re.fullmatch(r"(\d+)(-(\d*))?", spec)
    first, last = (int(found[1]), int(found[3] or anatomy.depth - 1) if found[2] else int(found[1])) if found else (1, 0)
    if not first <= last < anatomy.depth:
        raise InputError(f"tune=layers:{spec}: give layers:A-B with 0 <= A <= B <= {anatomy.depth - 1}.")
    return [n for n in names if first <= anatomy.level(n) <= last]


def _norms(model: nn.Module) -> list[str]:
    kinds = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    return [n for n, _ in model.named_parameters() if n.rpartition(".")[0] in kinds]


def with_rows(lm: LanguageModel, tokens: Sequence[int]) -> None:
    """Puts label rows for `tokens` into the model's head, where there are none yet. Raises InputError for other tokens."""
    head = lm.model.get_output_embeddings()
    if not isinstance(head, LabelRows):
        lm.model.set_output_embeddings(LabelRows(head, tokens))
    elif head.tokens.tolist() != list(tokens):
        raise InputError(
            f"The model has label rows for {len(head.tokens)} tokens, and {len(tokens)} are to be moved, which are others:"
            " stages of a chain that move the head must read the same data. Give them the same n_train, shots and keep."
        )


def moves_rows(tune: str) -> bool:
    """Whether a `tune` text names a form that moves label rows."""
    return any(form in ("head", "features") for form, _ in forms(tune))


def with_features(lm: LanguageModel, tokens: Sequence[int], basis: Tensor) -> None:
    """Label rows for `tokens` along a `basis` [directions, d], beside what is added to them already."""
    before = lm.model.get_output_embeddings()
    if isinstance(before, LabelRows):
        with_rows(lm, tokens)  # the same tokens?
    base = before.added(before.rows.data) if isinstance(before, LabelRows) else None
    head = before.head if isinstance(before, LabelRows) else before
    lm.model.set_output_embeddings(LabelRows(head, tokens, basis, base))


def without_rows(lm: LanguageModel) -> None:
    """Takes label rows out of the model's head."""
    head = lm.model.get_output_embeddings()
    if isinstance(head, LabelRows):
        lm.model.set_output_embeddings(head.head)


def plain_names(lm: LanguageModel, names: Iterable[str]) -> dict[str, str]:
    """What the model without label rows and LoRA's wrappers calls its parameters `names`; adapters and rows are left out."""
    head = next(n for n, m in lm.model.named_modules() if m is lm.head)
    kept = (n for n in names if n != f"{head}.rows" and ".lora_" not in n and not n.startswith("prompt_encoder."))
    return {n: n.replace(f"{head}.head.", f"{head}.").replace(".base_layer.", ".") for n in kept}


def wanted(tune: str) -> int:
    """How many directions a `tune` text asks for; 0 where it does not name features. Raises InputError."""
    found = [spec for form, spec in forms(tune) if form == FEATURES]
    if not found:
        return 0
    if "head" in [form for form, _ in forms(tune)]:
        raise InputError(f"tune={tune}: head and features both move the label rows. Take one of them.")
    if len(found) > 1 or (found[0] and not (found[0].isdigit() and int(found[0]) > 0)):
        raise InputError(f"tune={tune}: give features or features:K with a number of directions, as in features:48.")
    return int(found[0] or COUNT)


def check(tune: str) -> None:
    """Raises InputError for a `tune` text that no model could have."""
    for form, spec in forms(tune):
        if form not in {f.partition(":")[0] for f in FORMS}:
            raise unknown("subset to tune", form, FORMS)
        if form == "pattern":
            _regex(spec)
    wanted(tune)


def select(lm: LanguageModel, tune: str, tokens: Sequence[int]) -> Subset:
    """Finds what `tune` says in a model that has its adapters. Raises InputError.

    Label rows for `tokens`, which `head` moves, are put in.
    """
    parts = forms(tune)
    check(tune)
    if any(form == "head" for form, _ in parts):
        with_rows(lm, tokens)
    where = anatomy(lm.model) if any(form in LOCATED for form, _ in parts) else None
    names = [n for n, _ in lm.model.named_parameters()]
    chosen: set[str] = set()
    for form, spec in parts:
        match form:
            case "all":
                chosen |= set(names)
            case "norms":
                chosen |= set(_norms(lm.model))
            case "lora":
                chosen |= {n for n in names if ".lora_" in n}
            case "prefix" | "prompt":
                chosen |= {n for n in names if n.startswith("prompt_encoder.")}
            case "pattern":
                chosen |= {n for n in names if re.search(_regex(spec), n)}
            case "head":
                assert where is not None
                chosen |= {n for n in names if n.startswith(where.norm_name + ".") or n == where.head_name + ".rows"}
            case "features":
                assert where is not None and isinstance(lm.head, LabelRows) and lm.head.basis is not None
                chosen.add(where.head_name + ".rows")
            case "layers":
                assert where is not None
                chosen |= set(_layers(spec, where, names))
    if not chosen:
        raise InputError(
            f"tune={tune} selects no parameter of {lm.name}. Its parameters are called like {names[0]}, {names[-1]}."
        )
    return _subset(lm, tuple(n for n in names if n in chosen), where)


def _regex(spec: str) -> str:
    try:
        re.compile(spec)
    except re.error as error:
        raise InputError(f"tune=pattern:{spec}: not a regular expression: {error}.") from error
    return spec


def _subset(lm: LanguageModel, names: tuple[str, ...], where: Anatomy | None) -> Subset:
    parameters = dict(lm.model.named_parameters())
    gains = {}
    for n in names:
        values = parameters[n].data
        if where is not None and n == where.head_name + ".rows":
            head = lm.model.get_output_embeddings()
            if head.basis is not None:
                gains[n] = 1.0  # nats, by the basis
                continue
            values = head.weight[head.tokens] + head.rows if head.sized else head.weight[head.tokens]
        gains[n] = root_mean_square(values) if bool(values.any()) else ZERO_GAIN
    cut = max(0, min(where.level(n) for n in names)) if where is not None else 0
    return Subset(names, gains, cut)


def with_all(subset: Subset) -> Subset:
    """The same parameters with equal gains: plain, absolute scales."""
    return replace(subset, gains=dict.fromkeys(subset.names, 1.0))


def merged_head(lm: LanguageModel) -> None:
    """Puts label rows into the output head itself, untied from the embedding, so that the model can be saved."""
    head = lm.model.get_output_embeddings()
    if not isinstance(head, LabelRows):
        return
    plain = nn.Linear(head.weight.shape[1], head.weight.shape[0], bias=getattr(head.head, "bias", None) is not None)
    plain.to(device=head.weight.device, dtype=head.weight.dtype).requires_grad_(False)
    plain.weight.copy_(head.weight.index_add(0, head.tokens, head.added(head.rows.data)))
    if plain.bias is not None:
        plain.bias.copy_(head.head.bias)  # type: ignore[arg-type]
    lm.model.config.get_text_config().tie_word_embeddings = False
    lm.model.config.tie_word_embeddings = False
    lm.model.set_output_embeddings(plain)
    for module in lm.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if module is not plain and parameter is plain.bias:  # BERT's head keeps it twice, and would save it once
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
