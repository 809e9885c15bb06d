"""From a run's folder back to its weights, by the base model and the journal: no data, no forward pass."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from zo_objectives import adapters, probing
from zo_objectives.building import build_weights
from zo_objectives.config import make_config
from zo_objectives.errors import InputError
from zo_objectives.language import hf
from zo_objectives.results import make_folder, read_history
from zo_objectives.search import journal
from zo_objectives.search.weights import Weights
from zo_objectives.subsets import merged_head


@dataclass(frozen=True)
class Restored:
    """A model as it was after `step` of `steps` steps, and its best step on validation."""

    lm: hf.LanguageModel
    weights: Weights
    step: int
    steps: int
    best_step: int | None


def best_step(folder: Path) -> int | None:
    """The step with the best validation score, the first of equals; None where none was looked at."""
    path = folder / "history.csv"
    seen = [r for r in read_history(path) if r.validation is not None] if path.exists() else []
    return max(seen, key=lambda r: (r.validation, -r.step)).step if seen else None


@torch.no_grad()
def restore(folder: Path, step: int | None = None, model: str | None = None) -> Restored:
    """Replays a run to `step` (its best on validation where None); `model` says where the base is now, if it has moved.

    Raises InputError for a folder that is no run, a step that was not taken, another noise, another base.
    """
    header, records = journal.read(folder / "journal.zoj")
    config = make_config(header["config"])
    best = best_step(folder)
    target = step if step is not None else best if best is not None else len(records)
    if not 0 <= target <= len(records):
        raise InputError(f"{folder} has steps 0 to {len(records)}; there is no step {target}.")
    lm = adapters.adapted(hf.load(model or config.model, dtype=config.dtype, device=config.device), config.tune)
    if start := probing.start_of(folder):
        probing.put_rows(lm, start)
    weights, _ = build_weights(config, lm, header["row_tokens"])
    journal.replay(header, records[:target], weights)
    return Restored(lm, weights, target, len(records), best)


def verify(folder: Path, model: str | None = None) -> str:
    """Replays a run to its best step and compares with the weights it saved. Raises InputError if a bit differs."""
    found = restore(folder, model=model)
    saved = load_file(folder / "best.safetensors")
    for name, values in found.weights.state_dict().items():
        if name not in saved or not torch.equal(values.cpu(), saved[name]):
            raise InputError(f"{folder}: the journal's step {found.step} and best.safetensors differ in {name}.")
    numbers = f"{found.weights.count:,} numbers"
    return f"{folder}: {found.steps} steps; step {found.step} replays to the saved weights bit for bit ({numbers})."


@torch.no_grad()
def export(folder: Path, output: Path, step: int | None = None, model: str | None = None) -> Restored:
    """Writes the model after `step` as transformers' own folder, adapters and label rows merged into it."""
    found = restore(folder, step, model)
    make_folder(output)
    adapters.merged(found.lm)
    merged_head(found.lm)
    found.lm.model.save_pretrained(output)
    found.lm.tokenizer.save_pretrained(output)
    return found
