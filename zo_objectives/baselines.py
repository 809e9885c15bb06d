"""What zeroth-order tuning is compared with, on the same prompts, each a function from a run to result rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zo_objectives import probing, starts, subsets
from zo_objectives.active_run import Clock, Run
from zo_objectives.best_of import best_of_n
from zo_objectives.building import batch_of
from zo_objectives.errors import InputError, RunError
from zo_objectives.features import put_features
from zo_objectives.grpo import grpo
from zo_objectives.language.anatomy import anatomy
from zo_objectives.language.hf import LanguageModel
from zo_objectives.language.objectives import BUILTIN
from zo_objectives.language.outputs import Outputs
from zo_objectives.losses import cross_entropy
from zo_objectives.results import History, HistoryRow, ResultRow
from zo_objectives.scoring import ForwardScorer, Indices, Kind, Pool, Scorer, kind_for
from zo_objectives.search.estimators import Probe
from zo_objectives.selection import Look

Values = dict[str, Tensor]


def zero_shot(run: Run) -> list[ResultRow]:
    """The model as it is: free of charge."""
    pool = run.bench.fresh()
    run.memory.restart()
    scorer = ForwardScorer(pool, None, None)
    rows, outputs = run.measure(scorer, (0, 0, 0), 0.0, 0, None, run.bench.metrics[0].name, "none")
    run.save_predictions(outputs, outputs)
    return rows


def linear_probing(run: Run) -> list[ResultRow]:
    """Logistic regression on the state that the head reads; its strength is chosen on validation."""
    bench = run.bench
    pool = bench.fresh()
    run.memory.restart()
    clock = Clock()
    clock.start()
    probe = probing.fit(pool, bench.train, bench.validation, bench.metrics[0])
    clock.stop()
    starts.save_weights(run.output / probing.PROBE, {"weights": torch.from_numpy(probe.weights)})
    before = run.watch(ForwardScorer(pool, None, None), bench.metrics[:1], bench.test)[1]
    scorer = _Probed(pool, probe)
    rows, after = run.measure(scorer, pool.cost.spent, clock.seconds, probe.weights.size, None, "cross_entropy", "probe")
    run.save_predictions(before, after)
    return rows


class _Probed(Scorer):
    """A scorer that says what a linear probe says."""

    def __init__(self, pool: Pool, probe: probing.Probe) -> None:
        self.pool, self.probe = pool, probe

    def outputs(self, kind: Kind, probes: Sequence[Probe], indices: Indices, draw: int = 0) -> list[Outputs]:
        return [self.probe.choices(probing.features(self.pool, indices)) for _ in probes]


class _FineTuning:
    """One learning rate's run of AdamW over what is tuned, from the base."""

    def __init__(self, run: Run, pool: Pool, kind: Kind, rate: float, tuned: Sequence[nn.Parameter]) -> None:
        self.run, self.pool, self.kind = run, pool, kind
        self.settings, self.parameters = run.config.ft, [p.requires_grad_(True) for p in tuned]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=self.settings.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, self.settings.steps)

    def step(self, t: int) -> float:
        """One step; the batch depends on seed and step alone. Returns the loss."""
        chosen = batch_of(self.run.config.seed, self.settings.batch, self.run.bench.train, t)
        device = self.pool.lm.device.type
        with torch.enable_grad():
            with torch.autocast(device, torch.bfloat16, enabled=self.settings.autocast):
                value = cross_entropy(self.pool, chosen)
            value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.pool.charge(3, self.kind, chosen)
        if not torch.isfinite(value):
            raise RunError(f"Fine-tuning diverged in step {t}: the loss is {value.item()}. Lower ft.learning_rates.")
        return float(value)


@contextmanager
def checkpointed(lm: LanguageModel) -> Iterator[None]:
    """While open, layers keep only what enters them, and compute the rest again in the backward pass (Chen et al. 2016)."""
    if any("prompt_encoder" in n for n, _ in lm.model.named_parameters()):
        raise InputError("ft.checkpointing computes layers twice, which keys of a prefix do not survive. Turn one off.")
    layers = list(anatomy(lm.model).layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def fine_tuning(run: Run) -> list[ResultRow]:
    """Backprop fine-tuning of `ft.tune` with AdamW, a linear decay to 0 and gradients clipped at norm 1.

    The learning rate and the step are those with the best validation score; all rates' steps are charged.
    """
    bench, settings = run.bench, run.config.ft
    bench.stale = True
    pool = bench.fresh(settings.tune, run.start)
    bench.stale = True  # for whoever comes next
    put_features(bench, pool, settings.tune, run.output)
    rows = bench.row_tokens() if subsets.moves_rows(settings.tune) else []
    names = subsets.select(pool.lm, settings.tune, rows).names
    with checkpointed(pool.lm) if settings.checkpointing else nullcontext():
        return _tuned(run, pool, {n: p for n, p in pool.lm.model.named_parameters() if n in names})


def _tuned(run: Run, pool: Pool, tuned: Mapping[str, nn.Parameter]) -> list[ResultRow]:
    bench, settings = run.bench, run.config.ft
    kind = kind_for(bench.spec, BUILTIN["cross_entropy"])
    headline, scorer = bench.metrics[0], ForwardScorer(pool, None, None)
    run.memory.restart()
    base = _copy(tuned)
    score, before = (
        run.headline(scorer, headline),
        run.watch(scorer, [headline], bench.test)[1],
    )
    run.note_start(score)
    start = Look(0, score, run.said or run.saying(scorer))
    best: tuple[float, int, float, Values] = (score, 0, 0.0, base)
    clock, histories, looks = Clock(), dict[float, list[HistoryRow]](), 0
    with run.bar(settings.steps * len(settings.learning_rates), 0) as bar:
        for rate in settings.learning_rates:
            _put(tuned, base)
            tuning = _FineTuning(run, pool, kind, rate, list(tuned.values()))
            rows = [HistoryRow(0, 0, 0, 0, 0.0, None, None, score)]
            spent, seconds = pool.cost.spent, clock.seconds
            for t in range(settings.steps):
                clock.start()
                value = tuning.step(t)
                clock.stop()
                found = None
                if (t + 1) % max(1, settings.steps // 5) == 0 or t + 1 == settings.steps:
                    found, looks = run.headline(scorer, headline), looks + 1
                    if found > best[0]:
                        best, run.best_said = (found, t + 1, rate, _copy(tuned)), run.said
                forwards, examples, tokens = (a - b for a, b in zip(pool.cost.spent, spent, strict=True))
                rows.append(
                    HistoryRow(t + 1, forwards, examples, tokens, round(clock.seconds - seconds, 3), None, None, found)
                )
                bar.set_postfix(rate=rate, loss=f"{value:.3f}", best=f"{best[0]:.3f}")
                bar.update()
            histories[rate] = rows
    last = Look(best[1], best[0], run.best_said or start.said)
    step = run.select(scorer, start, last, looks=looks, steps=settings.steps).step
    values = best[3] if step else base
    _put(tuned, values)
    starts.keep_best(run.output, pool.lm, values)
    history = History(run.output / "history.csv", 0)
    for row in histories.get(best[2], next(iter(histories.values()))):
        history.append(row)
    count = sum(v.numel() for v in base.values())
    spent_in_all = pool.cost.spent
    rows_out, after = run.measure(scorer, spent_in_all, clock.seconds, count, step, "cross_entropy", settings.tune)
    run.save_predictions(before, after)
    return rows_out


def _copy(tuned: Mapping[str, nn.Parameter]) -> Values:
    return {n: p.detach().clone() for n, p in tuned.items()}


def _put(tuned: Mapping[str, nn.Parameter], values: Values) -> None:
    for name, parameter in tuned.items():
        parameter.data.copy_(values[name])


BASELINES: dict[str, Callable[[Run], list[ResultRow]]] = {
    "zero-shot": zero_shot,
    "calibrated": zero_shot,
    "icl": zero_shot,
    "lp": linear_probing,
    "ft": fine_tuning,
    "grpo": grpo,
    "best-of-n": best_of_n,
}
