"""What zeroth-order tuning is compared with, on the same prompts, each a function from a run to result rows."""

from collections.abc import Callable

import torch
from torch import Tensor

from zo_objectives.building import batch_of
from zo_objectives.errors import RunError
from zo_objectives.language.objectives import BUILTIN
from zo_objectives.losses import cross_entropy
from zo_objectives.results import History, HistoryRow, ResultRow
from zo_objectives.run import Clock, Run, spent_so_far
from zo_objectives.scoring import ForwardScorer, Kind, Pool, kind_for

Values = dict[str, Tensor]


def zero_shot(run: Run) -> list[ResultRow]:
    """The model as it is: free of charge."""
    pool = run.bench.fresh()
    run.memory.restart()
    scorer = ForwardScorer(pool, None, None)
    rows, outputs = run.measure(scorer, (0, 0, 0), 0.0, 0, None, run.bench.metrics[0].name)
    run.save_predictions(outputs, outputs)
    return rows


class _FineTuning:
    """One learning rate's run of AdamW over all parameters, from the base."""

    def __init__(self, run: Run, pool: Pool, kind: Kind, rate: float) -> None:
        self.run, self.pool, self.kind = run, pool, kind
        self.settings = run.config.ft
        self.parameters = [p.requires_grad_(True) for p in pool.lm.model.parameters() if p.is_floating_point()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=self.settings.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, self.settings.steps)

    def step(self, t: int) -> float:
        """One step; the batch depends on seed and step alone. Returns the loss."""
        chosen = batch_of(self.run.config.seed, self.settings.batch, self.run.bench.train, t)
        with torch.enable_grad():
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


def fine_tuning(run: Run) -> list[ResultRow]:
    """Backprop fine-tuning of all parameters with AdamW, a linear decay to 0 and gradients clipped at norm 1.

    The learning rate and the step are those with the best validation score; all rates' steps are charged.
    """
    bench, settings = run.bench, run.config.ft
    bench.stale = True
    pool = bench.fresh()
    bench.stale = True  # for whoever comes next
    kind = kind_for(bench.spec, BUILTIN["cross_entropy"])
    headline, scorer = bench.metrics[0], ForwardScorer(pool, None, None)
    run.memory.restart()
    base = {n: p.detach().clone() for n, p in pool.lm.model.named_parameters()}
    score, before = (
        run.watch(scorer, [headline], bench.validation)[0][headline.name],
        run.watch(scorer, [headline], bench.test)[1],
    )
    best: tuple[float, int, float, Values] = (score, 0, 0.0, base)
    clock, histories = Clock(), dict[float, list[HistoryRow]]()
    with run.bar(settings.steps * len(settings.learning_rates), 0) as bar:
        for rate in settings.learning_rates:
            _put(pool, base)
            tuning, rows = _FineTuning(run, pool, kind, rate), [HistoryRow(0, 0, 0, 0, 0.0, None, None, score)]
            spent, seconds = spent_so_far(pool), clock.seconds
            for t in range(settings.steps):
                clock.start()
                value = tuning.step(t)
                clock.stop()
                found = None
                if (t + 1) % max(1, settings.steps // 5) == 0 or t + 1 == settings.steps:
                    found = run.watch(scorer, [headline], bench.validation)[0][headline.name]
                    if found > best[0]:
                        best = (
                            found,
                            t + 1,
                            rate,
                            {n: p.detach().clone() for n, p in pool.lm.model.named_parameters()},
                        )
                forwards, examples, tokens = (a - b for a, b in zip(spent_so_far(pool), spent, strict=True))
                rows.append(
                    HistoryRow(t + 1, forwards, examples, tokens, round(clock.seconds - seconds, 3), None, None, found)
                )
                bar.set_postfix(rate=rate, loss=f"{value:.3f}", best=f"{best[0]:.3f}")
                bar.update()
            histories[rate] = rows
    _put(pool, best[3])
    history = History(run.output / "history.csv", 0)
    for row in histories.get(best[2], next(iter(histories.values()))):
        history.append(row)
    rows_out, after = run.measure(
        scorer, spent_so_far(pool), clock.seconds, sum(v.numel() for v in base.values()), best[1], "cross_entropy"
    )
    run.save_predictions(before, after)
    return rows_out


def _put(pool: Pool, values: Values) -> None:
    for name, parameter in pool.lm.model.named_parameters():
        parameter.data.copy_(values[name])


BASELINES: dict[str, Callable[[Run], list[ResultRow]]] = {"zero-shot": zero_shot, "ft": fine_tuning}
