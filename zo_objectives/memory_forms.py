"""What `zo-objectives memory` compares: one step of each form on OPT's shapes with random weights.

A step is measured in a process of its own, or counted: the same code runs on tensors that have shapes and no elements while
every storage that lives is added up. That is exact for weights, gradients, the optimizer's state and activations. What
kernels need inside and what an allocator wastes is not in it, and under autocast, where torch adds the two gradients of
tied embeddings in place, it has one of them too many.
"""

import gc
import json
import sys
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zo_objectives.results import PeakMemory
from zo_objectives.search import kernels
from zo_objectives.search.estimators import Spsa
from zo_objectives.search.geometry import Dense, Leaf
from zo_objectives.search.keys import root_key
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights

CONTEXT, VOCABULARY = 2048, 50272
DEMONSTRATIONS, PREFIX, RANK = 32, 5, 8  # of in-context learning, prefix tuning, LoRA (MeZO, appendix E)
WARM = 16  # tokens of the step on a tiny model that a process does before it is measured


@dataclass(frozen=True)
class Shape:
    """OPT's: hidden size, layers, heads; size of the embeddings where it is another, norms before or after the layers."""

    hidden: int
    layers: int
    heads: int
    embedding: int = 0
    norms_first: bool = True


SHAPES = {
    "tiny": Shape(64, 2, 2),
    "125m": Shape(768, 12, 12),
    "350m": Shape(1024, 24, 16, embedding=512, norms_first=False),
    "1.3b": Shape(2048, 24, 32),
    "2.7b": Shape(2560, 32, 32),
    "6.7b": Shape(4096, 32, 32),
    "13b": Shape(5120, 40, 40),
    "30b": Shape(7168, 48, 56),
    "66b": Shape(9216, 64, 72),
}


@dataclass(frozen=True)
class Form:
    """What is tuned ("" for nothing), and how: with AdamW by backprop, or by SPSA."""

    told: str
    tuned: str = ""
    backprop: bool = False
    checkpointing: bool = False
    demonstrations: int = 0

    @property
    def steps(self) -> int:
        """How many are taken: an optimizer's state is there when the second begins."""
        return 2 if self.backprop else 1


FORMS = {
    "inference": Form("a forward"),
    "icl": Form(f"a forward with {DEMONSTRATIONS} demonstrations, at most {CONTEXT} tokens", demonstrations=DEMONSTRATIONS),
    "mezo": Form("SPSA, all parameters", "all"),
    "mezo-lora": Form(f"SPSA, LoRA of rank {RANK} on q_proj and v_proj", "lora"),
    "mezo-prefix": Form(f"SPSA, {PREFIX} virtual tokens", "prefix"),
    "ft": Form("AdamW, all parameters", "all", backprop=True),
    "ft-checkpointing": Form("AdamW, all parameters, layers computed again", "all", backprop=True, checkpointing=True),
    "ft-lora": Form("AdamW, LoRA as above", "lora", backprop=True),
    "ft-lora-checkpointing": Form("AdamW, LoRA as above, layers computed again", "lora", backprop=True, checkpointing=True),
    "ft-prefix": Form("AdamW, prefix as above", "prefix", backprop=True),
}
AUTOCAST = "float32+bfloat16"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, AUTOCAST: torch.float32}  # of weights
ATTENTION = ("sdpa", "eager")  # torch's fused one, and written out, as in 2023: tokens x tokens numbers for each head


@dataclass(frozen=True)
class Cell:
    """What is measured: a form on a shape, in a dtype, at a batch of texts of so many tokens."""

    shape: str
    form: str
    dtype: str
    tokens: int = 400
    batch: int = 1
    device: str = "cpu"
    attention: str = "sdpa"

    @property
    def length(self) -> int:
        """Tokens of one text, demonstrations and all."""
        return min(CONTEXT, self.tokens * (1 + FORMS[self.form].demonstrations))


class Counted(NamedTuple):
    """Bytes, but for the model's parameters; `peak` is the most that lived at once in a step."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    peak: int


def opt(cell: Cell) -> nn.Module:
    """An OPT of the cell's shape, made in the cell's dtype."""
    from transformers import AutoModelForCausalLM, OPTConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    shape = SHAPES[cell.shape]
    config = OPTConfig(
        hidden_size=shape.hidden,
        ffn_dim=4 * shape.hidden,
        word_embed_proj_dim=shape.embedding or shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        do_layer_norm_before=shape.norms_first,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
    )
    with torch.device(cell.device):
        model: nn.Module = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[cell.dtype], attn_implementation=cell.attention
        )
    return model.eval().requires_grad_(False)


def adapted(model: nn.Module, tuned: str, dtype: torch.dtype) -> nn.Module:
    """The model with LoRA or a prefix by peft, in `dtype`, nothing else to be trained."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    lora = {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    kind, settings = (LoraConfig, lora) if tuned == "lora" else (PrefixTuningConfig, {"num_virtual_tokens": PREFIX})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's notes on deprecated names
        found: nn.Module = get_peft_model(model, kind(task_type="CAUSAL_LM", **settings), autocast_adapter_dtype=False)
    return found.to(dtype)


def build(cell: Cell) -> nn.Module:
    """The cell's model; what its form tunes wants gradients."""
    model, tuned = opt(cell), FORMS[cell.form].tuned
    return model.requires_grad_(bool(tuned)) if tuned in ("", "all") else adapted(model, tuned, DTYPES[cell.dtype])


def plain(model: nn.Module) -> Any:
    """The transformers model, without what peft put around it."""
    found: Any = model
    return found.get_base_model() if hasattr(found, "get_base_model") else found


@dataclass(frozen=True)
class _Still(Dense):
    """Directions that nobody fills in: for tensors without elements."""

    def axpy(self, out: Tensor, base: Tensor, key: int, leaf: Leaf, coefficient: float, start: int = 0) -> None:
        pass


class Step:
    """A model, and a step of the cell's form at each call."""

    def __init__(self, cell: Cell, model: nn.Module, *, counting: bool = False) -> None:
        self.cell, self.form, self.model, self.counting = cell, FORMS[cell.form], model, counting
        self.ids = torch.randint(4, VOCABULARY, (cell.batch, cell.length), device=cell.device)
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        self.tuned = [p for p in model.parameters() if p.requires_grad]
        if self.form.backprop:
            model.train()
            if self.form.checkpointing:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # it is about to be called otherwise
                    plain(model).gradient_checkpointing_enable({"use_reentrant": False})
            self.optimizer = torch.optim.AdamW(self.tuned, lr=1e-6, fused=True)
        elif self.form.tuned:
            model.requires_grad_(False)
            geometry = _Still() if counting else Dense()
            self.weights = Weights(model, names, geometry=geometry, rule=sgd(constant(1e-6)), store="inference")

    def __call__(self) -> None:
        if self.form.backprop:
            self._descend()
        elif self.form.tuned:
            self._climb()
        else:
            with torch.no_grad():
                self.loss()

    def loss(self) -> Tensor:
        """Cross-entropy of the next token, in float32, as transformers computes it."""
        logits: Tensor = self.model(input_ids=self.ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), self.ids[:, 1:].flatten())

    def _descend(self) -> None:
        mixed = torch.autocast(torch.device(self.cell.device).type, torch.bfloat16)
        around: AbstractContextManager[Any] = mixed if self.cell.dtype == AUTOCAST else nullcontext()
        with torch.enable_grad():
            with around:
                value = self.loss()
            value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _climb(self) -> None:
        """One step with one direction; counted without its update, whose scratch is a few million elements at most."""
        if self.counting:
            for probe in Spsa(1e-3).probes(root_key(0), 0):
                with self.weights.at(probe):
                    self.loss()
            return
        for _ in climb(self.weights, Spsa(1e-3), sequential(self.weights, lambda t: -float(self.loss())), steps=1, seed=0):
            pass


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, the bytes of all storages that operations have made and that still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        del self.seen[key]
        self.now -= size


def _without_elements(model: nn.Module) -> None:
    """Gives a model on `meta` parameters and buffers of the mode that is entered, shared where they were."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and old not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                if old is not None:
                    tensors[name] = made[old]  # type: ignore[assignment]


def count(cell: Cell) -> Counted:
    """The cell by arithmetic: no memory to speak of, no device, seconds for any shape."""
    model = build(replace(cell, device="meta"))
    whole = list(opt(replace(cell, device="meta")).parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), _Living() as living:
        _without_elements(model)
        gc.collect()
        step = Step(replace(cell, device="cpu"), model, counting=True)
        living.peak = living.now
        for _ in range(step.form.steps):
            step()
    weights = sum(p.nbytes for p in model.parameters())
    tuned = sum(p.nbytes for p in step.tuned) if step.form.backprop else 0
    return Counted(sum(p.numel() for p in whole), weights, tuned, 2 * tuned, living.peak)


def measure(cell: Cell) -> int:
    """Bytes at the peak of the form's steps in this process: torch's on a GPU, resident above those before on a CPU.

    Before is after the same on a tiny model, so that libraries are loaded. A process should measure once.
    """
    if not FORMS[cell.form].backprop:
        kernels.on_cpu.warm()
    tiny = replace(cell, shape="tiny", tokens=WARM, batch=1)
    Step(tiny, build(tiny))()
    gc.collect()
    memory = PeakMemory()
    memory.restart()
    before = memory.read()
    step = Step(cell, build(cell))
    memory.restart()
    if on_gpu := cell.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(cell.device)
    for _ in range(step.form.steps):
        step()
    return torch.cuda.max_memory_allocated(cell.device) if on_gpu else round((memory.read() - before) * 2**20)


def command(cell: Cell) -> list[str]:
    """A process that prints what `measure` says."""
    code = "from zo_objectives.memory_forms import child; child()"
    return [sys.executable, "-c", code, json.dumps(asdict(cell))]


def child() -> None:
    print(measure(Cell(**json.loads(sys.argv[1]))))
