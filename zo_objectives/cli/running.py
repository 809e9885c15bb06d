"""Commands about one run: run, and probe, which says before it what to set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zo_objectives.cli.options import (
    Budget,
    Config,
    DataDir,
    Include,
    Model,
    ObjectiveOption,
    Quiet,
    Set,
    Tune,
    scales_of,
    settings_of,
)
from zo_objectives.cli.printing import print_notes, print_start_and_best, print_table
from zo_objectives.cli.session import interruptible, quiet_libraries
from zo_objectives.errors import InputError


def run(
    task: Annotated[str, typer.Argument(help="Task name or YAML file.")],
    method: Annotated[str, typer.Option(help="A method, METHOD:TUNE or a chain, as in ft+zo; see compare.")] = "zo",
    model: Model = None,
    data_dir: DataDir = None,
    include_path: Include = None,
    objective: ObjectiveOption = None,
    tune: Tune = None,
    steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    budget: Budget = None,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    output: Annotated[Path | None, typer.Option(help="The run's folder; an unfinished run there is taken up again.")] = None,
    config: Config = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """One run. Interrupt it with Ctrl-C and give the same command to go on."""
    from zo_objectives.compare import plan_runs, run_folder
    from zo_objectives.report import write_report

    quiet_libraries()
    if steps is not None and budget is not None:
        raise InputError(f"--steps {steps} and --budget {budget} say the same. Give one of them.")
    given = {
        "model": model,
        "data_dir": data_dir,
        "include_path": include_path,
        "objective": objective,
        "tune": tune,
        "steps": steps,
    }
    settings = settings_of(set_=set_, config=config, **given)
    plan = plan_runs([task], [method], [seed], settings, budget=budget, demo=False)
    if not plan.configs:
        raise InputError(plan.notes[-1])
    print_notes(plan.notes)
    import pandas as pd

    from zo_objectives.run import NOTES, execute

    folder = output or Path(run_folder(plan.configs[0]))
    with interruptible():
        execute(plan.configs[0], folder, show=not quiet)
    print_table(pd.read_csv(folder / "results.csv"))
    print_start_and_best(folder)
    if (folder / NOTES).exists():
        print_notes((folder / NOTES).read_text(encoding="utf-8").splitlines())
    typer.echo(f"Run: {folder}\nReport: {write_report([folder], folder / 'report.html')}")


def probe(
    task: Annotated[str, typer.Argument(help="Task name or YAML file.")],
    method: Annotated[str, typer.Option(help="zo, zo-ce or mezo-ce, or one of them with :TUNE.")] = "zo",
    model: Model = None,
    data_dir: DataDir = None,
    include_path: Include = None,
    objective: ObjectiveOption = None,
    tune: Tune = None,
    budget: Annotated[int, typer.Option("--budget", min=2, help="Forward passes of the run to recommend.")] = 19_200,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    scales: Annotated[str | None, typer.Option(help="Scales, with commas, as in 0.1,0.3.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of forward passes at each scale.")] = 16,
    examples: Annotated[int | None, typer.Option(help="Training examples in each of them.")] = None,
    output: Annotated[Path | None, typer.Option(help="A CSV file with a row for each scale and batch.")] = None,
    config: Config = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Before training: how flat the objective is at which scale and batch, what to set, and whether anything will work."""
    from zo_objectives.compare import plan_runs
    from zo_objectives.results import write_atomically
    from zo_objectives.survey_table import command, measured, show

    quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective, "tune": tune}

    def settle(texts: Sequence[str], steps: int | None) -> Any:
        settings = settings_of(set_=list(texts), config=config, steps=steps, **options)
        plan = plan_runs([task], [method], [seed], settings, budget=None, demo=False)
        if not plan.configs:
            raise InputError(plan.notes[-1])
        return plan.configs[0]

    if output is not None and not output.resolve().parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}.")
    with interruptible("Nothing of a survey is kept: the same command begins anew."):
        found, about = measured(settle(set_ or [], None), scales_of(scales), pairs, examples, budget, show=not quiet)
    show(found, about)
    if found.recommended is not None:
        given = {"method": None if method == "zo" else method, **options, "seed": seed or None, "config": config}
        flags = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
        typer.echo(f"\n{command(about.task, flags, set_ or [], found.recommended, settle)}")
    print_notes(about.notes)
    if output is not None:
        write_atomically(output, found.frame.to_csv(index=False))
        typer.echo(f"\nTable: {output}")
