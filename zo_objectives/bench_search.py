"""What the search side costs: noise passes, a step, its memory. See timing.py.

The yardstick is reference MeZO's step (Malladi et al. 2023, Algorithm 1) as published: the generator is seeded and a normal
tensor is drawn for each parameter in four passes (+eps, -2 eps, +eps, update), each of which makes the parameter anew.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from zo_objectives.results import PeakMemory
from zo_objectives.search import kernels, noise
from zo_objectives.search.estimators import Spsa
from zo_objectives.search.geometry import Dense
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.loop import climb
from zo_objectives.search.members import sequential
from zo_objectives.search.noise import Law
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights
from zo_objectives.timing import SHAPES, Part, Row, Setting, in_turns

ELEMENTS = 1 << 25
BATCH, LENGTH = 16, 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def opt(setting: Setting) -> nn.Module:
    """An OPT model of the setting's shape with random weights: costs do not depend on what they are."""
    from transformers import AutoModelForCausalLM, OPTConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    size, layers, heads = SHAPES[setting.shape]
    shape = {"hidden_size": size, "word_embed_proj_dim": size, "ffn_dim": 4 * size}
    config = OPTConfig(**shape, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=50272)
    with torch.device(setting.device):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[setting.dtype])
    return model.eval().requires_grad_(False)


def reference_pass(parameters: list[nn.Parameter], seed: int, factor: float) -> None:
    """theta <- theta + factor * z for every parameter, as reference MeZO does it."""
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.shape, device=p.device, dtype=p.dtype)
        p.data = p.data + factor * z


def reference_step(parameters: list[nn.Parameter], loss: Callable[[], float], seed: int, eps: float, rate: float) -> None:
    """MeZO, Algorithm 1."""
    reference_pass(parameters, seed, eps)
    above = loss()
    reference_pass(parameters, seed, -2 * eps)
    below = loss()
    reference_pass(parameters, seed, eps)
    projected = (above - below) / (2 * eps)
    reference_pass(parameters, seed, -rate * projected)


def noise_part(setting: Setting) -> Iterator[Row]:
    """Passes over one large tensor, elements a second."""
    dtype = DTYPES[setting.dtype]
    base = torch.linspace(-1, 1, ELEMENTS, device=setting.device).to(dtype)
    out = torch.empty_like(base)
    parameter = nn.Parameter(base.clone(), requires_grad=False)
    kernels.on_cpu.warm()

    def dense(law: Law, into: Tensor, start: Tensor) -> Callable[[], None]:
        return lambda: noise.axpy(law, into, start, 5, 8, 1e-3)

    times = in_turns(
        {
            "add_": lambda: out.add_(base),
            "copy_": lambda: out.copy_(base),
            "signs in place": dense(Law.RADEMACHER, out, out),
            "signs out of place": dense(Law.RADEMACHER, out, base),
            "Gaussian": dense(Law.GAUSSIAN, out, base),
            "reference": lambda: reference_pass([parameter], 5, 1e-3),
        },
        setting,
    )

    def row(name: str, against: str, goal: str = "") -> Row:
        speed = ELEMENTS / times.median(name) / 1e6
        return Row("noise", f"our pass, {name}", speed, "M elements/s", against, times.ratio(against, name), goal)

    yield Row("noise", "tensor.add_", ELEMENTS / times.median("add_") / 1e6, "M elements/s")
    yield Row("noise", "tensor.copy_", ELEMENTS / times.median("copy_") / 1e6, "M elements/s")
    yield Row("noise", "reference MeZO's pass", ELEMENTS / times.median("reference") / 1e6, "M elements/s")
    on_gpu = setting.device.startswith("cuda")
    yield row("signs in place", "add_", "" if on_gpu else ">= 0.7")
    yield row("signs in place", "reference", "" if on_gpu else ">= 30")
    yield row("signs out of place", "add_")
    yield row("signs out of place", "copy_", ">= 0.8" if on_gpu else "")
    yield row("signs out of place", "reference")
    yield row("Gaussian", "reference")


class Bed:
    """A model, a batch and the loss of a forward pass: what plain forwards, our step and the reference's step share."""

    def __init__(self, setting: Setting, batch: int = BATCH) -> None:
        self.model = opt(setting)
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(4, 50000, (batch, LENGTH), generator=generator).to(setting.device)
        names = [n for n, _ in self.model.named_parameters()]
        self.parameters = list(self.model.parameters())
        self.weights = Weights(self.model, names, geometry=Dense(), rule=sgd(constant(1e-6)), store="inference")
        self.evaluate = sequential(self.weights, lambda t: -self.loss())
        self.steps = 0

    @torch.no_grad()
    def loss(self) -> float:
        """Cross-entropy of the next token, nats."""
        logits: Tensor = self.model(input_ids=self.ids, use_cache=False).logits
        targets = self.ids[:, 1:].flatten()
        return float(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets))

    def two_forwards(self) -> None:
        self.loss()
        self.loss()

    def step(self) -> None:
        """One step of SPSA with one direction, as `climb` takes it."""
        seed, self.steps = self.steps, self.steps + 1
        for _ in climb(self.weights, Spsa(1e-3), self.evaluate, steps=1, seed=seed):
            pass

    @torch.no_grad()
    def reference(self) -> None:
        reference_step(self.parameters, self.loss, 5, 1e-3, 1e-6)


def step_part(setting: Setting) -> Iterator[Row]:
    """An SPSA step against two plain forwards, and reference MeZO's step against the same."""
    bed = Bed(setting)
    kernels.on_cpu.warm()
    times = in_turns(
        {"two forwards": bed.two_forwards, "our step": bed.step, "reference step": bed.reference}, setting, warm=2
    )
    goal = "<= 1.05" if setting.device.startswith("cuda") else "<= 1.08"
    yield Row("step", "two forwards", times.median("two forwards"), "s")
    ratio = times.ratio("our step", "two forwards")
    yield Row("step", "our step", times.median("our step"), "s", "two forwards", ratio, goal)
    ratio = times.ratio("reference step", "two forwards")
    yield Row("step", "reference step", times.median("reference step"), "s", "two forwards", ratio)


def peak(setting: Setting, action: str) -> float:
    """MiB at the peak of one `action` of a Bed, above nothing: run in a process of its own."""
    bed = Bed(setting)
    bed.loss()
    on_gpu, memory = setting.device.startswith("cuda"), PeakMemory()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    memory.restart()
    getattr(bed, action)()
    return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else memory.read()


def memory_part(setting: Setting) -> Iterator[Row]:
    """Peak memory of forwards, of a step with the inference store, and of the reference's: medians over processes."""
    code = "import json, sys; from zo_objectives.bench_search import _child; _child(json.loads(sys.argv[1]), sys.argv[2])"

    def once(action: str) -> float:
        command = [sys.executable, "-c", code, json.dumps(asdict(setting)), action]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    actions = ("two_forwards", "step", "reference")
    found = {action: statistics.median(once(action) for _ in range(min(3, setting.repeat))) for action in actions}
    size, _, _ = SHAPES[setting.shape]
    layer = 50272 * size * (4 if setting.dtype == "float32" else 2) / 2**20
    plain = found["two_forwards"]
    allowed = (plain + layer) / plain + 0.02
    yield Row("memory", "two forwards", plain, "MiB")
    yield Row("memory", "largest layer", layer, "MiB")
    yield Row("memory", "our step", found["step"], "MiB", "two forwards", found["step"] / plain, f"<= {allowed:.3f}")
    yield Row("memory", "reference step", found["reference"], "MiB", "two forwards", found["reference"] / plain)


def _child(setting: dict[str, Any], action: str) -> None:
    print(peak(Setting(**setting), action))


def journal_part(setting: Setting) -> Iterator[Row]:
    """The bits of a run's journal on this device against the CPU's: one line for each, to be compared across machines."""
    fingerprints = {}
    for device in dict.fromkeys(("cpu", setting.device)):
        small = Setting(device=device, dtype=setting.dtype, shape="tiny")
        torch.manual_seed(0)
        model = opt(Setting(dtype=setting.dtype, shape="tiny")).to(device)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                noise.axpy(Law.RADEMACHER, p.data.view(-1), torch.zeros_like(p.data).view(-1), 7, i, 0.02)
        names = [n for n, _ in model.named_parameters()]
        weights = Weights(model, names, geometry=Dense(), rule=sgd(constant(1e-3), 0.01))
        for t in range(20):
            key = fold_in(root_key(3), t)
            weights.ascend(t, Spsa(1e-3, 2).gradient(key, (0.1 * (t % 5), 0.05, 0.3, 0.01 * t), t))
        fingerprints[small.device] = weights.fingerprint()
    same = len(set(fingerprints.values())) == 1
    told = ", ".join(f"{device} {print_[:12]}" for device, print_ in fingerprints.items())
    yield Row("journal", f"20 steps: {told}", float(same), "same bits", goal=">= 1")


PARTS: dict[str, Part] = {"noise": noise_part, "step": step_part, "memory": memory_part, "journal": journal_part}
