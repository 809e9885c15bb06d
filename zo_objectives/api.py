"""The Python entry point: a task, a metric or reward of the user's, a model; out comes the tuned model with its figures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from zo_objectives.compare import run_folder, with_budget
from zo_objectives.config import make_config
from zo_objectives.errors import InputError
from zo_objectives.language.objectives import Objective, resolve
from zo_objectives.language.tasks import load_task
from zo_objectives.methods import in_all_stages, method_settings
from zo_objectives.replay import restore
from zo_objectives.run import NOTES, execute
from zo_objectives.settings import merge, task_settings
from zo_objectives.workbench import Workbench


@dataclass(frozen=True)
class Tuned:
    """A finished run: its folder and its result rows (see results.ResultRow for the columns)."""

    folder: Path
    results: pd.DataFrame

    @property
    def notes(self) -> list[str]:
        """What a reader of the results should know: odd things about the objective, the data, steps left out."""
        path = self.folder / NOTES
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def model(self) -> tuple[Any, Any]:
        """The tuned transformers model, at its best step on validation, and its tokenizer."""
        restored = restore(self.folder)
        return restored.lm.model, restored.lm.tokenizer


def tune(
    task: str,
    *,
    objective: str | Callable[..., Any] | Objective | None = None,
    output: str | Path | None = None,
    budget: int | None = None,
    show: bool = True,
    **settings: Any,
) -> Tuned:
    """Tunes a model on a task by `method` (zo, where not given); the same as `zo-objectives run`, with any callable as
    objective.

    `task` is a name or a YAML file, `objective` a name or a callable (see objectives.py for the forms), `settings` are
    those of config.RunConfig; `budget` forward passes may be given in place of `steps`. A run that was left in `output` is
    taken up again. Raises InputError, RunError.
    """
    name = objective if isinstance(objective, str) else None
    resolved = None if objective is None or name is not None else resolve(objective)
    spec, _ = load_task(task, Path(settings["include_path"]) if settings.get("include_path") else None)
    given = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    method = given.setdefault("method", "zo")
    merged = method_settings(merge(task_settings(spec), given), method)
    config = make_config(in_all_stages(merged, task=task, objective=name))
    if budget is not None:
        if "steps" in settings:
            raise InputError(f"steps={settings['steps']} and budget={budget} say the same. Give one of them.")
        config = with_budget(config, budget)
    folder = Path(output) if output else Path(run_folder(config))
    execute(config, folder, bench=Workbench.open(config, resolved) if resolved else None, show=show)
    return Tuned(folder, pd.read_csv(folder / "results.csv"))
