"""The training loop, for a given time, and what it leaves.

Muon: Jordan et al., "Muon: an optimizer for hidden layers", 2024.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zo_objectives.pretraining.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

REPORTS = 10  # a phase


def new_optimizers(model: "PreTrainedModel", muon_rate: float, adamw_rate: float) -> list["torch.optim.Optimizer"]:
    """Muon on the matrices, AdamW on the norms and the embeddings, which are the head too."""
    import torch

    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.01)
    return [muon, torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def schedule(progress: float) -> float:
    """The factor on the learning rates after share `progress` of a phase: 2 % warm-up, a plateau, 40 % cooldown."""
    return max(0.0, min(1.0, progress / 0.02, (1.0 - progress) / 0.4))


def train(
    model: "PreTrainedModel",
    optimizers: "Sequence[torch.optim.Optimizer]",
    taken: Iterable[Tokens],
    loss_of: "Callable[[Tokens], torch.Tensor]",
    validate: Callable[[], float],
    minutes: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, float]:
    """Trains `model` in place on the batches `taken` for `minutes` of `clock`, with validations; the last report."""
    import torch

    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    began, tokens, reports, loss = clock(), 0, 0, torch.tensor(math.nan)
    for step, batch in enumerate(taken):
        progress = min(1.0, (clock() - began) / (60 * minutes))
        if progress * REPORTS >= reports + 1:
            reports, held_out = int(progress * REPORTS), validate()
            counts = f"{progress * minutes:6.2f} min  step {step:5d}  {tokens / 1e6:6.2f} M tokens"
            print(f"{counts}  loss {loss.item():.3f}  validation {held_out:.3f}", flush=True)
        if progress == 1.0:
            break
        for group, peak in groups:
            group["lr"] = peak * schedule(progress)
        loss = loss_of(batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.size
    return {"steps": step, "tokens": tokens, "loss": loss.item(), "validation_loss": held_out}


def save(
    model: "PreTrainedModel", tokenizer: "Tokenizer", names: Mapping[str, Any], record: dict[str, Any], output: Path
) -> None:
    """Writes the model in float16, its tokenizer and `training.json` to a folder that `from_pretrained` reads."""
    from transformers import PreTrainedTokenizerFast

    model.half().save_pretrained(output)  # type: ignore[no-untyped-call,unused-ignore]
    rest = {"model_max_length": model.config.max_position_embeddings, "clean_up_tokenization_spaces": False}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**rest, **names})  # type: ignore[no-untyped-call,unused-ignore]
    fast.save_pretrained(output)
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
