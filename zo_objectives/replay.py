"""From a run's folder back to its weights, by the base model, the run's start and the journal: no data, no forward pass."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from zo_objectives import adapters, selection, starts
from zo_objectives.building import build_weights
from zo_objectives.config import RunConfig, make_config
from zo_objectives.config_files import read_config, upgraded
from zo_objectives.errors import InputError
from zo_objectives.features import basis_in
from zo_objectives.handover import put_best
from zo_objectives.language import hf
from zo_objectives.results import last_step, make_folder, read_history
from zo_objectives.search import journal
from zo_objectives.search.weights import Weights
from zo_objectives.starts import BEST, START
from zo_objectives.subsets import merged_head, with_features


@dataclass(frozen=True)
class Restored:
    """A model as it was after `step` of `steps` steps, and its best step on validation; no `weights` after backprop."""

    lm: hf.LanguageModel
    weights: Weights | None
    step: int
    steps: int
    best_step: int | None


def best_step(folder: Path) -> int | None:
    """The step that was kept: the one with the best validation score, the first of equals, if no guard held the start; None
    where none was looked at."""
    if (chosen := selection.read(folder)) is not None:
        return chosen.step
    path = folder / "history.csv"
    seen = [r for r in read_history(path) if r.validation is not None] if path.exists() else []
    return max(seen, key=lambda r: (r.validation, -r.step)).step if seen else None


@torch.no_grad()
def restore(folder: Path, step: int | None = None, model: str | None = None) -> Restored:
    """Replays a run to `step` (its best on validation where None); `model` says where the base is now, if it has moved.

    Raises InputError for a folder that is no run, a step that was not taken, another noise, another base.
    """
    if not (folder / "journal.zoj").exists() and (folder / BEST).exists():
        return _kept(folder, step, model)
    if not (folder / "journal.zoj").exists() and (folder / "runs").is_dir():
        raise InputError(f"{folder} gathers runs. Name one of them: a folder with a journal.zoj below {folder / 'runs'}.")
    header, records = journal.read(folder / "journal.zoj")
    config = make_config(upgraded(header["config"]))
    best = best_step(folder)
    target = step if step is not None else best if best is not None else len(records)
    if not 0 <= target <= len(records):
        raise InputError(f"{folder} has steps 0 to {len(records)}; there is no step {target}.")
    lm = _started(folder, config, model, header["row_tokens"])
    weights, _ = build_weights(config, lm, header["row_tokens"])
    journal.replay(header, records[:target], weights)
    return Restored(lm, weights, target, len(records), best)


def _started(folder: Path, config: RunConfig, model: str | None, tokens: list[int]) -> hf.LanguageModel:
    """The model that a run began with, with its adapters, and label rows for `tokens` along features, if it tunes any."""
    start = starts.start_of(folder)
    if config.before is not None and start is None:
        raise InputError(f"{folder} lacks {START}, which {config.called} began with. Restore it from a backup.")
    labels = starts.labels_of(folder)
    base = hf.load(model or config.model, dtype=config.dtype, device=config.device, labels=labels)
    lm = starts.begun(base, start, config.tuned)
    if (basis := basis_in(folder, config.tuned)) is not None:
        with_features(lm, tokens, basis)
    return lm


def _kept(folder: Path, step: int | None, model: str | None) -> Restored:
    """A run without a journal, at the one step whose weights it keeps."""
    config, best = read_config(folder), best_step(folder)
    if step is not None and step != best:
        raise InputError(f"{folder} has no journal: {config.called} keeps the weights of its best step alone, {best}.")
    values, tokens = starts.best_of(folder)
    lm = _started(folder, config, model, tokens)
    put_best(lm, values, tokens)
    return Restored(lm, None, best or 0, last_step(folder / "history.csv"), best)


def verify(folder: Path, model: str | None = None) -> str:
    """Replays a run to its best step and compares with the weights it saved. Raises InputError if a bit differs."""
    found = restore(folder, model=model)
    if found.weights is None:
        raise InputError(f"{folder} has no journal to verify: only zo and mezo-ce write one.")
    saved = load_file(folder / BEST)
    for name, values in found.weights.state_dict().items():
        if name not in saved or not torch.equal(values.cpu(), saved[name]):
            raise InputError(f"{folder}: the journal's step {found.step} and best.safetensors differ in {name}.")
    numbers = f"{found.weights.count:,} numbers"
    return f"{folder}: {found.steps} steps; step {found.step} replays to the saved weights bit for bit ({numbers})."


@torch.no_grad()
def export(folder: Path, output: Path, step: int | None = None, model: str | None = None) -> Restored:
    """Writes the model after `step` as transformers' own folder, LoRA and label rows merged into it.

    A prefix or prompt is written as peft's own folder; what it stands before is in `base` there, where a run or its start
    changed that.
    """
    found = restore(folder, step, model)
    make_folder(output)
    adapters.merged(found.lm)
    merged_head(found.lm)
    if hf.virtual_tokens(found.lm.model) and _base_moved(folder):
        base = output / "base"
        found.lm.model.get_base_model().save_pretrained(base)
        found.lm.tokenizer.save_pretrained(base)
        found.lm.model.peft_config["default"].base_model_name_or_path = str(base.resolve())
    found.lm.model.save_pretrained(output)
    found.lm.tokenizer.save_pretrained(output)
    return found


def _base_moved(folder: Path) -> bool:
    """Whether a run changed more of the model than its virtual tokens."""
    return (folder / START).exists() or any(not n.startswith("prompt_encoder.") for n in load_file(folder / BEST))
