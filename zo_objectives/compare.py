"""Comparisons: tasks x methods x seeds, each a run folder, gathered into results.csv and a report."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from zo_objectives.config import RunConfig, make_config
from zo_objectives.errors import InputError, Unfit
from zo_objectives.language.tasks import TaskSpec, load_task, task_files
from zo_objectives.methods import METHODS, PROBING, in_all_stages, method_settings, named, stages
from zo_objectives.report import write_report
from zo_objectives.results import machine, make_gathering, versions, write_atomically
from zo_objectives.run import NOTES, execute, inside
from zo_objectives.selection import of_many
from zo_objectives.settings import Settings, for_task, merge, task_settings
from zo_objectives.starts import check
from zo_objectives.workbench import Workbench


@dataclass(frozen=True)
class Plan:
    """What a comparison runs, settled and validated before anything is spent.

    `alone` are the runs that chains begin with, as they are without what comes after them, by the folder of each.
    """

    configs: tuple[RunConfig, ...]
    specs: Mapping[str, TaskSpec]
    notes: tuple[str, ...]
    alone: Mapping[str, RunConfig]

    def earlier(self, output: Path, before: RunConfig, folder: Path) -> Path:
        """Where the run before that of `folder` is: the comparison's own, unless a part of its budget makes it another."""
        name = run_folder(before)
        return output / name if self.alone.get(name) == before else inside(before, folder)


def plan_runs(
    tasks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    *,
    budget: int | None,
    demo: bool,
) -> Plan:
    """Every run's configuration: defaults, then the task's, then the user's settings. Raises InputError."""
    for text in methods:
        named(text)
    include = Path(settings["include_path"]) if settings.get("include_path") else None
    specs = {task: load_task(task, include)[0] for task in tasks}
    notes = [f"Settings under methods.{n} are of none of the methods here." for n in _idle(settings, methods)]
    known = {*task_files(include), *(spec.task for spec in specs.values())}  # a file of settings may serve others too
    configs, alone = list[RunConfig](), dict[str, RunConfig]()
    for task, spec in specs.items():
        given = merge(task_settings(spec, demo=demo), for_task(settings, spec.task, known))

        def settled(method: str, seed: int, given: Settings = given, task: str = task) -> RunConfig:
            config = make_config(in_all_stages(method_settings(given, method), task=task, seed=seed))
            check(config)
            return config if budget is None else with_budget(config, budget)

        for method in methods:
            if reason := next(filter(None, (_unfit(spec, stage) for stage in stages(method))), None):
                notes.append(f"{spec.task}: no {method}, since {reason}.")
                continue
            found = [settled(method, seed) for seed in seeds]
            texts = ["+".join(stages(method)[:n]) for n in range(1, len(stages(method)))]
            configs += found
            alone |= {run_folder(c): c for c in (settled(text, seed) for text in texts for seed in seeds)}
    return Plan(tuple(configs), specs, tuple(notes), alone)


def _idle(settings: Settings, methods: Sequence[str]) -> list[str]:
    """The names under the setting `methods` that no stage of any of the methods is called by."""
    given = settings.get("methods", {})
    parts = [stages(text) for text in methods]
    chains = {"+".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
    called = chains | {stage for part in parts for stage in part} | {named(stage)[0] for part in parts for stage in part}
    return [name for name in given if name not in called] if isinstance(given, Mapping) else []


def _unfit(spec: TaskSpec, stage: str) -> str | None:
    """Why a method, or a stage of a chain, cannot work on a task; None where nothing speaks against it."""
    name, _ = named(stage)
    kind, choice = METHODS[name], spec.output_type == "multiple_choice"
    if kind.loss and spec.doc_to_target is None:
        return "the task has no targets to take a cross-entropy of"
    if kind.settings.get("demonstrations") and spec.doc_to_target is None:
        return "the task has no targets for demonstrations to show"
    if (kind.settings.get("scoring") or name == PROBING) and not choice:
        return "the task has no options"
    if name == PROBING and not spec.fixed_options:
        return "its options differ from example to example; ft:head tunes the head instead"
    return None


def with_budget(config: RunConfig, forwards: int) -> RunConfig:
    """The configuration with as many steps as `forwards` forward passes allow; what takes backward passes as it is.

    The zeroth-order runs of a chain share them equally. Raises InputError for fewer than one step.
    """
    return _with_share(config, forwards, max(1, sum(stage.climbs for stage in config.stages)))


def _with_share(config: RunConfig, forwards: int, sharing: int) -> RunConfig:
    before, share = config.before, forwards // sharing
    config = config.model_copy(update={"before": _with_share(before, forwards, sharing)}) if before else config
    if not config.climbs:
        return config
    if config.forwards(1) > share:
        told = f"{forwards}, {share} for each of {sharing} stages," if sharing > 1 else f"{forwards}"
        raise InputError(
            f"--budget {told} is less than one step of {config.forwards(1)} forwards. Raise it or lower directions."
        )
    most = bisect_right(range(share + 1), share, key=config.forwards) - 1
    return config.model_copy(update={"steps": most})


def run_folder(config: RunConfig) -> str:
    method = re.sub(r"[^\w.+-]+", "-", config.called)
    return f"runs/{Path(config.task).stem}/{method}-seed{config.seed}"


def run_plan(plan: Plan, output: Path, *, command: str, show: bool, say: Callable[[str], None]) -> Path:
    """Runs what is not there yet, and writes results.csv, comparison.json and report.html. Returns the report's path."""
    make_gathering(output)
    bench: Workbench | None = None
    frames, notes = [], list(plan.notes)
    for config in plan.configs:
        name = run_folder(config)
        done = (output / name / "results.csv").exists()
        if not done:
            bench = (bench.fitted(config) if bench else None) or Workbench.open(config)
        try:
            folder = execute(config, output / name, bench=bench, show=show, earlier=partial(plan.earlier, output))
        except Unfit as reason:
            notes.append(f"{config.task}, {config.called}, seed {config.seed}: left out. {reason}")
            say(notes[-1])
            continue
        frame = pd.read_csv(folder / "results.csv").assign(run=name)
        say(_headline(frame, config) + (" (was there)" if done else ""))
        frames.append(frame)
        if (folder / NOTES).exists():
            said = of_many((folder / NOTES).read_text(encoding="utf-8").splitlines())
            notes += [f"{config.task}, {config.called}, seed {config.seed}: {note}" for note in said]
    if not frames:
        raise InputError(f"No method could be run. {notes[-1] if notes else 'Name a task and a method.'}")
    results = pd.concat(frames, ignore_index=True)
    write_atomically(output / "results.csv", results.to_csv(index=False))
    write_atomically(
        output / "comparison.json", json.dumps(_about(plan, results, command, notes), indent=1, ensure_ascii=False) + "\n"
    )
    return write_report([output], output / "report.html")


def _headline(frame: pd.DataFrame, config: RunConfig) -> str:
    metric = frame["metric"].iloc[0]
    chosen = frame[frame["metric"] == metric].set_index("split")["value"]
    scores = f"{metric}: validation {chosen['validation']:.3f}, test {chosen['test']:.3f}"
    return f"{Path(config.task).stem:<10} {config.called:<12} seed {config.seed}   {scores}"


def _about(plan: Plan, results: pd.DataFrame, command: str, notes: Sequence[str]) -> dict[str, Any]:
    tasks = {}
    for spec in plan.specs.values():
        rows = results[results["task"] == spec.task]
        tuned = rows[rows["method"] == "zo"]
        tasks[spec.task] = {
            "description": str(spec.metadata.get("about", "")),
            "metric": str(rows["metric"].iloc[0]),
            "objective": str((tuned if len(tuned) else rows)["objective"].iloc[0]),
            "higher_is_better": True,
        }
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
        "tasks": tasks,
        "notes": list(notes),
    }
