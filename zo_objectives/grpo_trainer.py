"""TRL's GRPOTrainer, kept quiet: it prints, logs, writes and sends nothing, and draws nobody else's random numbers."""

import copy
import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import constants
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from zo_objectives.config import Grpo
from zo_objectives.language.hf import LanguageModel

LOUD = ("trl", "transformers", "accelerate")


class _AfterEachStep(TrainerCallback):  # type: ignore[misc]
    """Calls a function with the number of each step that was taken, the model in evaluation mode."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        model.eval()
        with torch.no_grad():
            self.call(int(state.global_step))
        model.train()


def train(
    lm: LanguageModel,
    batches: Sequence[Sequence[int]],
    *,
    draw: Callable[..., dict[str, Any]],
    reward: Callable[..., list[float | None]],
    after: Callable[[int], None],
    rate: float,
    settings: Grpo,
    new_tokens: int,
    seed: int,
    output: Path,
) -> None:
    """One run of GRPO on all of a model's parameters, in place: a step for each of `batches`, equally many numbers each.

    TRL's prompts are these numbers as texts: `draw(prompts, trainer)` makes of them what TRL calls a rollout (prompt_ids,
    completion_ids, logprobs), and `reward(prompts=, completion_ids=, ...)` scores it. With beta, the reference policy is the
    model as it is now. The rest is as TRL has it (AdamW, a rate that falls linearly to 0, gradients clipped at norm 1), but
    for dropout, which is off as in everything else here.
    """
    config = GRPOConfig(
        output_dir=str(output),
        learning_rate=rate,
        max_steps=len(batches),
        per_device_train_batch_size=len(batches[0]) * settings.generations,
        num_generations=settings.generations,
        max_completion_length=new_tokens,
        temperature=settings.temperature,
        beta=settings.beta,
        disable_dropout=True,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        seed=seed % 2**32,
        use_cpu=lm.device.type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"prompt": [str(number) for batch in batches for number in batch]})
    trainer = GRPOTrainer(
        model=lm.model,
        reward_funcs=reward,
        args=config,
        train_dataset=rows,
        processing_class=copy.deepcopy(lm.tokenizer),  # it is given a padding token
        callbacks=[_AfterEachStep(after)],
        rollout_func=draw,
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.ref_model is not None:  # TRL takes it from the folder, and a run may begin elsewhere
        trainer.ref_model.load_state_dict(lm.model.state_dict())
    with torch.enable_grad():
        trainer.train()


@contextmanager
def quiet(lm: LanguageModel, ends: Sequence[int]) -> Iterator[None]:
    """While open, the model is one that TRL may train, for which `ends` are the tokens that end a text, and TRL is quiet.

    Afterwards the model is in evaluation mode again, with its own forward.
    """
    levels = {name: logging.getLogger(name).level for name in LOUD}
    telemetry, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    states = random.getstate(), np.random.get_state()
    lm.model.generation_config.eos_token_id = list(ends) or None
    lm.model.requires_grad_(True)
    devices = [lm.device] if lm.device.type == "cuda" else []
    try:
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry
        random.setstate(states[0])
        np.random.set_state(states[1])
        vars(lm.model).pop("forward", None)  # TRL's, which leaves out the logits
        lm.model.zero_grad(set_to_none=True)
        lm.model.requires_grad_(False).eval()
