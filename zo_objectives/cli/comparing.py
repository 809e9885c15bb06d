"""Commands that make many runs: demo, compare, sweep, study."""

import json
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
    Seeds,
    Set,
    Tune,
    names_in,
    seeds_of,
    settings_of,
)
from zo_objectives.cli.printing import print_notes, print_study, print_sweep, print_table
from zo_objectives.cli.session import command_line, interruptible, quiet_libraries
from zo_objectives.errors import RunError


def demo(
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("zo-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    quiet: Quiet = False,
) -> None:
    """Tune the embedded model on three tasks, no network needed, and write a report."""
    from zo_objectives.compare import plan_runs

    quiet_libraries()
    plan = plan_runs(
        ["reviews", "sums", "tidy"], ["zero-shot", "mezo-ce", "ft", "zo"], range(seeds), {}, budget=None, demo=True
    )
    _compare(plan, output, quiet)


def compare(
    tasks: Annotated[list[str], typer.Argument(help="Task names or YAML files.")],
    methods: Annotated[
        str,
        typer.Option(
            help="zero-shot, calibrated, icl, lp, ft, grpo, best-of-n, mezo-ce, zo, zo-ce; METHOD:TUNE, as in ft:lora;"
            " chains: ft+zo; with commas."
        ),
    ] = "zero-shot,mezo-ce,ft,zo",
    seeds: Seeds = "3",
    budget: Budget = None,
    model: Model = None,
    data_dir: DataDir = None,
    include_path: Include = None,
    objective: ObjectiveOption = None,
    tune: Tune = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the comparison; runs that are there are kept.")] = None,
    config: Config = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Run several methods on the same prompts and report what each gained and cost."""
    from zo_objectives.compare import plan_runs

    quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective, "tune": tune}
    settings = settings_of(set_=set_, config=config, **options)
    names = names_in(methods)
    plan = plan_runs(tasks, names, seeds_of(seeds), settings, budget=budget, demo=False)
    _compare(plan, output or Path("comparisons") / "-".join(Path(t).stem for t in tasks), quiet)


def _compare(plan: Any, output: Path, quiet: bool) -> None:
    import pandas as pd

    from zo_objectives.compare import run_plan

    with interruptible():
        report = run_plan(plan, output, command=command_line(), show=not quiet, say=typer.echo)
    print_table(pd.read_csv(output / "results.csv"))
    print_notes(json.loads((output / "comparison.json").read_text(encoding="utf-8"))["notes"])
    typer.echo(f"\nReport: {report}\nTable:  {output / 'results.csv'}")


def sweep(
    tasks: Annotated[list[str], typer.Argument(help="Task names or YAML files.")],
    methods: Annotated[str, typer.Option(help="As in compare; separated by commas.")] = "mezo-ce",
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="paper: MeZO's grids; or key=value,value; repeat it.")
    ] = None,
    seeds: Seeds = "1",
    budget: Budget = None,
    model: Model = None,
    data_dir: DataDir = None,
    include_path: Include = None,
    objective: ObjectiveOption = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the sweep; runs that are there are kept.")] = None,
    config: Config = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Run methods at every point of a grid of settings, and choose on validation. Ctrl-C, then the same command goes on."""
    import pandas as pd

    from zo_objectives.config import RunConfig
    from zo_objectives.language.hf import Form, form_at
    from zo_objectives.sweep import parse_grid, plan_sweep, run_sweep

    quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective}
    settings = settings_of(set_=set_, config=config, **options)
    names = names_in(methods)
    chosen = None if grid is None or grid == ["paper"] else parse_grid(grid)
    masked = form_at(str(settings.get("model", RunConfig.model_fields["model"].default))) is not Form.CAUSAL
    points = plan_sweep(tasks, names, seeds_of(seeds), chosen, settings, masked=masked, budget=budget)
    folder = output or Path("sweeps") / "-".join(Path(t).stem for t in tasks)
    with interruptible():
        path = run_sweep(points, folder, show=not quiet, say=typer.echo)
    print_sweep(pd.read_csv(path))
    typer.echo(f"\nTable: {path}")


def study(
    file: Annotated[Path, typer.Argument(help="The study's YAML file; see zo_objectives/study_file.py.")],
    data_dir: DataDir = None,
    models: Annotated[Path | None, typer.Option("--models", help="A folder where model names are looked up first.")] = None,
    include_path: Include = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the study; runs that are there are kept.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="Run the cells of these tasks now, with commas.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes, each with one thread and a run at a time.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    quiet: Quiet = False,
) -> None:
    """Tune and compare methods over tasks, models and metrics, with intervals over seeds. Ctrl-C, then the same command."""
    quiet_libraries()
    from zo_objectives.study import run_study
    from zo_objectives.study_file import read_study
    from zo_objectives.study_plan import Places, plan_study
    from zo_objectives.study_tables import sentences

    data, where, include = (None if path is None else str(path) for path in (data_dir, models, include_path))
    folder = output or Path("studies") / file.stem
    tasks = names_in(only or "")
    plan = plan_study(read_study(file), Places(data, where, include, device), folder, tasks)
    with interruptible():
        found = run_study(plan, workers=jobs, command=command_line(), show=not quiet, say=typer.echo)
    print_study(found)
    typer.echo("\n\n".join(sentences(found.differences)))
    print_notes(found.notes)
    typer.echo(f"\nPage:  {folder / 'study.html'}\nTable: {folder / 'table.csv'}")
    if found.failures:
        raise RunError(f"{found.failures} of the study's runs could not be made; the notes above say why.")
