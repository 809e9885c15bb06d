"""Comparisons: tasks x methods x seeds, each a run folder, gathered into results.csv and a report."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from zo_objectives.config import (
    AFTER,
    METHODS,
    Kind,
    RunConfig,
    Settings,
    for_task,
    make_config,
    merge,
    method_settings,
    named,
    task_settings,
)
from zo_objectives.errors import InputError, Unfit
from zo_objectives.language.tasks import TaskSpec, load_task, task_files
from zo_objectives.report import write_report
from zo_objectives.results import machine, make_folder, versions, write_atomically
from zo_objectives.run import NOTES, execute
from zo_objectives.workbench import Workbench


@dataclass(frozen=True)
class Plan:
    """What a comparison runs, settled and validated before anything is spent."""

    configs: tuple[RunConfig, ...]
    specs: Mapping[str, TaskSpec]
    notes: tuple[str, ...]


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
    kinds = {text: METHODS[named(text)[0]] for text in methods}
    include = Path(settings["include_path"]) if settings.get("include_path") else None
    specs = {task: load_task(task, include)[0] for task in tasks}
    known = {*task_files(include), *(spec.task for spec in specs.values())}  # a file of settings may serve others too
    configs, notes = [], []
    for task, spec in specs.items():
        for method in methods:
            if reason := _unfit(spec, method, kinds[method]):
                notes.append(f"{spec.task}: no {method}, since {reason}.")
                continue
            given = for_task(settings, spec.task, known)
            own = method_settings(merge(task_settings(spec, demo=demo), given), method)
            for seed in seeds:
                config = make_config({**own, "task": task, "seed": seed})
                if budget is not None:
                    config = with_budget(config, budget)
                configs.append(config)
    return Plan(tuple(configs), specs, tuple(notes))


def _unfit(spec: TaskSpec, method: str, kind: Kind) -> str | None:
    """Why a method cannot work on a task; None where nothing speaks against it."""
    choice = spec.output_type == "multiple_choice"
    if kind.loss and spec.doc_to_target is None:
        return "the task has no targets to take a cross-entropy of"
    if kind.settings.get("demonstrations") and spec.doc_to_target is None:
        return "the task has no targets for demonstrations to show"
    if (kind.settings.get("scoring") or method.startswith(AFTER)) and not choice:
        return "the task has no options"
    if method.startswith(AFTER) and not spec.fixed_options:
        return "its options differ from example to example; ft:head tunes the head instead"
    return None


def with_budget(config: RunConfig, forwards: int) -> RunConfig:
    """The configuration with as many steps as `forwards` forward passes allow. Raises InputError for fewer than one step."""
    if config.forwards(1) > forwards:
        raise InputError(
            f"--budget {forwards} is less than one step of {config.forwards(1)} forwards. Raise it or lower directions."
        )
    most = bisect_right(range(forwards + 1), forwards, key=config.forwards) - 1
    return config.model_copy(update={"steps": most})


def run_folder(config: RunConfig) -> str:
    method = re.sub(r"[^\w.+-]+", "-", config.called)
    return f"runs/{Path(config.task).stem}/{method}-seed{config.seed}"


def run_plan(plan: Plan, output: Path, *, command: str, show: bool, say: Callable[[str], None]) -> Path:
    """Runs what is not there yet, and writes results.csv, comparison.json and report.html. Returns the report's path."""
    make_folder(output)
    bench: Workbench | None = None
    frames, notes = [], list(plan.notes)
    for config in plan.configs:
        name = run_folder(config)
        done = (output / name / "results.csv").exists()
        if not done and (bench is None or not bench.serves(config)):
            bench = Workbench.open(config)
        try:
            folder = execute(config, output / name, bench=bench, show=show)
        except Unfit as reason:
            notes.append(f"{config.task}, {config.called}, seed {config.seed}: left out. {reason}")
            say(notes[-1])
            continue
        frame = pd.read_csv(folder / "results.csv").assign(run=name)
        say(_headline(frame, config) + (" (was there)" if done else ""))
        frames.append(frame)
        if (folder / NOTES).exists():
            said = (folder / NOTES).read_text(encoding="utf-8").splitlines()
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
