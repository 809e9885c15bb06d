"""Cross-entropy that can be differentiated: for fine-tuning, and for gradient norms by backprop."""

import torch
from torch import Tensor

from zo_objectives.language.objectives import BUILTIN
from zo_objectives.language.passes import plan, sheet_logits
from zo_objectives.scoring import Indices, Kind, Pool, kind_for


def cross_entropy(pool: Pool, indices: Indices) -> Tensor:
    """Nats, a scalar: of the right option among all, or per token of the target. Has a gradient where they are on."""
    kind = kind_for(pool.spec, BUILTIN["cross_entropy"])
    sheet = pool.sheet(kind).take(indices)
    logits = sheet_logits(pool.lm, sheet, plan(pool.lm, sheet))
    likelihoods = sheet.likelihoods(logits, sheet.columns if sheet.closed else None)
    if kind is Kind.CHOICE:
        labels = torch.tensor([pool.examples[i].label for i in indices], device=likelihoods.device)
        return torch.nn.functional.cross_entropy(likelihoods, labels)
    return -likelihoods.sum() / int(sheet.read_counts.sum())
