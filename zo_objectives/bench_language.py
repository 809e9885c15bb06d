"""What language models cost under members, with stored states, and at the start. See timing.py."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zo_objectives.bench_search import opt
from zo_objectives.building import Search, build_search
from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError, RunError
from zo_objectives.language.anatomy import anatomy
from zo_objectives.scoring import Evaluation, ForwardScorer, Kind, scorer_for
from zo_objectives.search import journal, kernels
from zo_objectives.search.estimators import Probe, Spsa
from zo_objectives.search.geometry import LowRank
from zo_objectives.search.members import members
from zo_objectives.search.rules import sgd
from zo_objectives.search.schedules import constant
from zo_objectives.search.weights import Weights
from zo_objectives.timing import Part, Row, Setting, in_turns, seconds
from zo_objectives.workbench import Workbench

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 24
POPULATIONS = (2, 8, 32, 64)
TEXTS = 32  # prompts that members along features continue
JUDGED = 32  # the population that the goals are about
PATIENCE = 300.0  # seconds for a run's first step


def members_part(setting: Setting) -> Iterator[Row]:
    """Populations that generate in one batch, against plain generation of as many rows and against one after another.

    One after another is measured in the store that is fastest at it: `master` makes a member's weights once, not for every
    token.
    """
    model: Any = opt(setting)
    names = [n for n, _ in model.named_parameters()]
    weights = Weights(model, names, geometry=LowRank(1), rule=sgd(constant(1e-6)))
    fastest = Weights(model, names, geometry=LowRank(1), rule=sgd(constant(1e-6)), store="master")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 50000, (PROMPTS, PROMPT_TOKENS), generator=generator).to(setting.device)
    kernels.on_cpu.warm()

    @torch.no_grad()
    def generate(count: int) -> None:
        ids = prompts.repeat(count, 1)
        mask = torch.ones_like(ids)
        new = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=1, **new)

    def together(count: int) -> None:
        with members(weights, Spsa(1e-3, count // 2).probes(1), PROMPTS):
            generate(count)

    def one_after_another(count: int) -> None:
        for probe in Spsa(1e-3, count // 2).probes(1):
            with fastest.at(probe):
                generate(1)

    for count in POPULATIONS:
        what, judged = f"{count} members together", count == JUDGED
        ways: dict[str, Callable[[], None]] = {"plain": partial(generate, count), "together": partial(together, count)}
        if count < JUDGED:
            ways["apart"] = partial(one_after_another, count)
        times = in_turns(ways, setting)
        speed = count * PROMPTS * NEW_TOKENS / times.median("together")
        ratio = times.ratio("plain", "together")
        yield Row("members", what, speed, "tokens/s", "plain generation", ratio, ">= 0.9" if judged else "")
        if count < JUDGED:
            yield Row("members", what, speed, "tokens/s", "one after another", times.ratio("apart", "together"))
        elif judged:  # takes minutes: once, right after
            ratio = seconds(partial(one_after_another, count), setting.device) / times.median("together")
            yield Row("members", what, speed, "tokens/s", "one after another", ratio, ">= 2")


def _config(setting: Setting, tune: str) -> RunConfig:
    task = "sst2_good_bad" if setting.data_dir else "reviews"
    own = {"task": task, "model": setting.model, "data_dir": setting.data_dir, "tune": tune, "objective": "accuracy"}
    return make_config({**own, "dtype": setting.dtype, "device": setting.device, "n_validation": 64, "n_test": 64})


def trunk_part(setting: Setting) -> Iterator[Row]:
    """Probes a second with what lies below the cut stored, against whole forwards, from the first layer to the head."""
    bench = Workbench.open(_config(setting, "head"))
    depth = anatomy(bench.lm.model).depth
    batch = bench.train[: min(512, len(bench.train))]
    for tune in [*(f"layers:{layer}-{depth - 1}" for layer in range(depth)), "head"]:
        bench.stale = True
        config = _config(setting, tune)
        search = build_search(bench, bench.fresh(), config)
        fast, weights = search.evaluation, search.weights
        whole = Evaluation(ForwardScorer(bench.pool, weights, None), fast.objective)
        many, few = Spsa(0.1, 16).probes(1), Spsa(0.1, 1).probes(1)
        probes = many if tune == "head" else few
        times = in_turns(
            {"whole": lambda: whole.scores(few, batch), "stored": lambda: fast.scores(probes, batch)},  # noqa: B023
            setting,
        )
        speed = len(probes) / times.median("stored")
        ratio = times.ratio("whole", "stored") * len(probes) / len(few)
        what = f"tune={tune}"
        yield Row("trunk", what, speed, "probes/s", "whole forwards", ratio)
        if tune == "head" and len(batch) == 512:
            yield Row("trunk", what, speed, "probes/s", goal=">= 5000")


def text_part(setting: Setting) -> Iterator[Row]:
    """Members along features, mostly saying different things, against one after another by the model's own `generate`; and
    the likelihoods they give to texts of several tokens.

    What they have said has its past kept, and is shared where they say the same; at the start nothing has been said. Texts
    that are read are the same at every step, and have been read before.
    """
    for task, method, done in (("tidy", "zo", "made"), ("sums", "mezo-ce", "read")):
        named = {"task": task, "method": method, "tune": "features"}
        config = make_config({**named, "model": setting.model, "dtype": setting.dtype, "device": setting.device})
        bench = Workbench.open(config)
        search = build_search(bench, bench.fresh(), config)
        for pairs in (1, 4):
            yield _members_along_features(setting, bench, search, Spsa(1.0, pairs).probes(1), done)


def _members_along_features(setting: Setting, bench: Workbench, search: Search, probes: Sequence[Probe], done: str) -> Row:
    pool, kind, batch = bench.pool, search.evaluation.kind, bench.train[:TEXTS]
    apart, known = ForwardScorer(pool, search.weights, None), scorer_for(pool, search.weights, search.subset)

    def together() -> None:
        scorer = scorer_for(pool, search.weights, search.subset) if kind is Kind.TEXT else known
        scorer.outputs(kind, probes, batch)

    times = in_turns({"apart": lambda: apart.outputs(kind, probes, batch), "together": together}, setting)
    speed, ratio = len(probes) * len(batch) / times.median("together"), times.ratio("apart", "together")
    what = f"{len(probes)} members, {len(batch)} prompts, texts {done}"
    return Row("text", what, speed, "texts/s", "one after another", ratio, ">= 2" if len(probes) == 8 else "")


def start_part(setting: Setting) -> Iterator[Row]:
    """From the command to the first step that is in the journal, everything included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        small = ["--set", "n_validation=8", "--set", "n_test=8", "--set", f"device={setting.device}"]
        command = ["-m", "zo_objectives", "run", "sums", "--tune", "norms", "--steps", "2", "--output", str(out), *small]
        began = time.perf_counter()
        run = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not _stepped(out / "journal.zoj"):
            if run.poll() is not None and not _stepped(out / "journal.zoj"):
                raise RunError(f"The run that was timed ended without a step: {run.communicate()[1].strip()[-300:]}")
            if time.perf_counter() - began > PATIENCE:
                run.kill()
                raise RunError(f"The run that was timed took no step in {PATIENCE:g} seconds.")
            time.sleep(0.02)
        taken = time.perf_counter() - began
        run.communicate()
    yield Row("start", "from command to first step", taken, "s", goal="<= 20")


def _stepped(path: Path) -> bool:
    try:
        return len(journal.read(path)[1]) > 0
    except InputError:
        return False


PARTS: dict[str, Part] = {"members": members_part, "trunk": trunk_part, "text": text_part, "start": start_part}
