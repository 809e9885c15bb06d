"""What a finished run hands over to the one that begins where it ended: the tensors in which its best weights on validation
differ from the base model, by plain names, LoRA's products merged into their layers (see starts.py).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from zo_objectives import adapters, probing
from zo_objectives.config import RunConfig
from zo_objectives.errors import InputError
from zo_objectives.features import basis_in
from zo_objectives.language.hf import LanguageModel
from zo_objectives.methods import PROBING
from zo_objectives.scoring import Pool
from zo_objectives.search import journal
from zo_objectives.starts import ROWS, Start, Values, begun, best_of, start_of
from zo_objectives.subsets import plain_names, with_rows, without_rows


@torch.no_grad()
def handed_over(pool: Pool, folder: Path, config: RunConfig) -> Values:
    """How the finished run of `config` in `folder` left the base model, which is the pool's; empty where it is as it was.

    A model that LoRA is merged into does not stay the base. Raises InputError for a run without weights.
    """
    if config.method == PROBING:
        return probing.label_rows(pool, _probe_of(folder))
    best, tokens = best_of(folder)
    if (folder / "journal.zoj").exists():  # also where version 0.1.0 wrote the weights
        tokens = journal.read(folder / "journal.zoj")[0]["row_tokens"]
    start, basis = start_of(folder) if config.before else None, basis_in(folder, config.tuned)
    if any(form in adapters.ADAPTERS for form, _ in adapters.forms(config.tuned)):
        return _merged(pool.lm, start, config.tuned, _whole(best, basis, start), tokens)
    names, base = plain_names(pool.lm, best), dict(pool.lm.model.named_parameters())
    values = (start.values if start else {}) | {plain: best[n].to(base[plain].dtype) for n, plain in names.items()}
    values |= _rows_in(_whole(best, basis, start), tokens, pool.lm.head.weight)
    return {n: v for n, v in values.items() if n in ROWS or not torch.equal(v, base[n].cpu())}


def put_best(lm: LanguageModel, best: Mapping[str, Tensor], tokens: list[int]) -> set[str]:
    """Puts a run's best weights into a model at the run's start, with its adapters; the names of those that differed."""
    if any(name.endswith(".rows") for name in best):
        with_rows(lm, tokens)
    parameters = dict(lm.model.named_parameters())
    moved = {n for n, v in best.items() if not torch.equal(v.to(parameters[n].dtype), parameters[n].cpu())}
    for name, values in best.items():
        parameters[name].data.copy_(values)
    return moved


def _merged(lm: LanguageModel, start: Start | None, tune: str, best: Values, tokens: list[int]) -> Values:
    """The same for a run with adapters, by way of the model itself."""
    lm = begun(lm, start, tune)
    moved = set(plain_names(lm, put_best(lm, best, tokens)).values())
    rows = _rows_in(best, tokens, lm.head.weight)
    without_rows(lm)
    moved |= {*adapters.merged(lm), *(start.plain if start else {})}
    of_start = {n: v for n, v in (start.values if start else {}).items() if n in ROWS}
    return of_start | rows | {n: p.detach().clone() for n, p in lm.model.named_parameters() if n in moved}


def _whole(best: Values, basis: Tensor | None, start: Start | None) -> Values:
    """A run's best weights; label rows along a basis as what they add to the head's own rows, [tokens, d]."""
    if basis is None:
        return best
    base = (start.values if start else {}).get("rows", torch.zeros(()))
    return {n: v.to(basis.dtype) @ basis + base if n.endswith(".rows") else v for n, v in best.items()}


def _rows_in(best: Mapping[str, Tensor], tokens: list[int], like: Tensor) -> Values:
    """The label rows among a run's best weights, if it moved any."""
    found = next((values for name, values in best.items() if name.endswith(".rows")), None)
    return {} if found is None or not found.any() else {"tokens": torch.tensor(tokens), "rows": found.to(like.dtype)}


def _probe_of(folder: Path) -> Tensor:
    """A linear probe's weights [classes, d]."""
    path = folder / probing.PROBE
    if not path.exists():
        raise InputError(f"{folder} has no {path.name}: version 0.1.0 wrote it. Remove it and start it again.")
    weights: Tensor = load_file(path)["weights"]
    return weights
