"""The command line. Thin: every command says what to do and imports the rest only when it runs.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong, 130 interrupted.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from zo_objectives.errors import InputError, RunError

app = typer.Typer(
    name="zo-objectives",
    help="Tune language models on the metric itself, with forward passes only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks_app = typer.Typer(help="Tasks: list, show, validate.", no_args_is_help=True)
objectives_app = typer.Typer(help="Objectives: list.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(objectives_app, name="objectives")

Model = Annotated[str | None, typer.Option("--model", help="Folder, hub name, or reviews-1m (embedded).")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Read DIR/<task>/{train,validation,test}.jsonl, not the hub.")
]
Include = Annotated[
    Path | None, typer.Option("--include-path", "--include_path", help="A folder with task files of your own.")
]
ObjectiveOption = Annotated[
    str | None, typer.Option("--objective", help="A name, module:function, file.py:function or a sum; see objectives ls.")
]
Tune = Annotated[
    str | None,
    typer.Option(
        "--tune", help="all, head, features:K, norms, layers:A-B, pattern:REGEX, lora, prefix, prompt; joined by +."
    ),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as key=value; repeat it.")]
Seeds = Annotated[str, typer.Option("--seeds", help="How many, from 0, or the seeds themselves, as in 13,21,42.")]
Budget = Annotated[int | None, typer.Option("--budget", help="Forward passes for each zeroth-order run, or chain of them.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="A YAML file of settings, also under tasks.TASK and methods.METHOD.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _settings(*, set_: list[str] | None, config: Path | None = None, **given: Any) -> dict[str, Any]:
    """The user's settings: a file's first, then options, then --set."""
    from zo_objectives.config import merge, parse_set, read_settings

    options = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    return merge(merge(read_settings(config) if config else {}, options), parse_set(set_ or []))


def _seeds(text: str) -> list[int]:
    """`3` is 0, 1, 2; `13,21` is those; `13,` is one."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts[:-1]) or not (parts[-1].isdigit() or (len(parts) > 1 and not parts[-1])):
        raise InputError(f"--seeds {text}: give a number of seeds, as in 3, or the seeds, as in 13,21,42.")
    seeds = [int(part) for part in parts if part] if len(parts) > 1 else list(range(int(text)))
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: give at least one seed, and each once.")
    return seeds


def _command() -> str:
    return " ".join(["zo-objectives", *map(shlex.quote, sys.argv[1:])])


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("zo-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    quiet: Quiet = False,
) -> None:
    """Tune the embedded model on three tasks, no network needed, and write a report."""
    from zo_objectives.compare import plan_runs

    _quiet_libraries()
    plan = plan_runs(
        ["reviews", "sums", "tidy"], ["zero-shot", "mezo-ce", "ft", "zo"], range(seeds), {}, budget=None, demo=True
    )
    _compare(plan, output, quiet)


@app.command()
def compare(
    tasks: Annotated[list[str], typer.Argument(help="Task names or YAML files.")],
    methods: Annotated[
        str,
        typer.Option(
            help="zero-shot, calibrated, icl, lp, ft, grpo, best-of-n, mezo-ce, zo; METHOD:TUNE, as in ft:lora; chains:"
            " ft+zo; with commas."
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

    _quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective, "tune": tune}
    settings = _settings(set_=set_, config=config, **options)
    names = [m.strip() for m in methods.split(",") if m.strip()]
    plan = plan_runs(tasks, names, _seeds(seeds), settings, budget=budget, demo=False)
    _compare(plan, output or Path("comparisons") / "-".join(Path(t).stem for t in tasks), quiet)


def _compare(plan: Any, output: Path, quiet: bool) -> None:
    import pandas as pd

    from zo_objectives.compare import run_plan

    with _interruptible():
        report = run_plan(plan, output, command=_command(), show=not quiet, say=typer.echo)
    _print_table(pd.read_csv(output / "results.csv"))
    _print_notes(json.loads((output / "comparison.json").read_text(encoding="utf-8"))["notes"])
    typer.echo(f"\nReport: {report}\nTable:  {output / 'results.csv'}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the command, not the run: what is written stays, and the same command goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Give the same command to go on from where it stopped.", err=True)
        raise typer.Exit(130) from None


def _print_notes(notes: Sequence[str]) -> None:
    """What a reader of the table should know; notes that differ in the seed alone are one."""
    from zo_objectives.sources import merge_notes

    for note in merge_notes(notes):
        typer.echo(f"Note: {note}")


def _print_start_and_best(folder: Path) -> None:
    """Where a run began and how far it came on validation."""
    from zo_objectives.results import read_history

    path = folder / "history.csv"
    seen = [r for r in read_history(path) if r.validation is not None] if path.exists() else []
    if seen and seen[0].step == 0:
        begun = "at the start" if (folder / "start.safetensors").exists() else "untouched"
        best = max(seen, key=lambda r: (r.validation, -r.step))
        typer.echo(
            f"Validation: {seen[0].validation:.3f} {begun}, {best.validation:.3f} at step {best.step} of {seen[-1].step}."
        )


def _print_table(results: Any) -> None:
    """The comparison on the terminal: mean and spread over seeds, gain, cost."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from zo_objectives.results import console
    from zo_objectives.standings import summary

    title = "test, mean ± standard deviation over seeds"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("task", "metric", "method"):
        table.add_column(column, no_wrap=True)
    for column in ("value", "gain", "forwards", "seconds", "peak MB"):
        table.add_column(column, justify="right", no_wrap=True)
    frame = summary(results)
    first = results.groupby("task", sort=False)["metric"].first()
    chosen = frame[(frame["split"] == "test") & (frame["metric"] == frame["task"].map(first))]
    for task, rows in chosen.groupby("task", sort=False):
        for row in rows.to_dict("records"):
            spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.3f}"
            gain = "" if math.isnan(row["gain"]) or row["method"] == "zero-shot" else f"{row['gain']:+.3f}"
            costs = f"{row['forwards']:,.0f}", f"{row['seconds']:.1f}", f"{row['peak_memory_mb']:,.0f}"
            table.add_row(str(task), row["metric"], row["method"], f"{row['mean']:.3f}{spread}", gain, *costs)
        table.add_section()
    console().print(table)


@app.command()
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

    _quiet_libraries()
    given = {
        "model": model,
        "data_dir": data_dir,
        "include_path": include_path,
        "objective": objective,
        "tune": tune,
        "steps": steps,
    }
    settings = _settings(set_=set_, config=config, **given)
    plan = plan_runs([task], [method], [seed], settings, budget=budget, demo=False)
    if not plan.configs:
        raise InputError(plan.notes[0])
    import pandas as pd

    from zo_objectives.run import NOTES, execute

    folder = output or Path(run_folder(plan.configs[0]))
    with _interruptible():
        execute(plan.configs[0], folder, show=not quiet)
    _print_table(pd.read_csv(folder / "results.csv"))
    _print_start_and_best(folder)
    if (folder / NOTES).exists():
        _print_notes((folder / NOTES).read_text(encoding="utf-8").splitlines())
    typer.echo(f"Run: {folder}\nReport: {write_report([folder], folder / 'report.html')}")


@app.command()
def probe(
    task: Annotated[str, typer.Argument(help="Task name or YAML file.")],
    method: Annotated[str, typer.Option(help="zo or mezo-ce, or one of them with :TUNE.")] = "zo",
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

    _quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective, "tune": tune}

    def settle(texts: Sequence[str], steps: int | None) -> Any:
        settings = _settings(set_=list(texts), config=config, steps=steps, **options)
        plan = plan_runs([task], [method], [seed], settings, budget=None, demo=False)
        if not plan.configs:
            raise InputError(plan.notes[0])
        return plan.configs[0]

    with _interruptible():
        found, about = measured(settle(set_ or [], None), _scales(scales), pairs, examples, budget, show=not quiet)
    show(found, about)
    if found.recommended is not None:
        given = {"method": None if method == "zo" else method, **options, "seed": seed or None, "config": config}
        flags = {f"--{name.replace('_', '-')}": value for name, value in given.items() if value is not None}
        typer.echo(f"\n{command(about.task, flags, set_ or [], found.recommended, settle)}")
    _print_notes(about.notes)
    if output is not None:
        write_atomically(output, found.frame.to_csv(index=False))
        typer.echo(f"\nTable: {output}")


def _scales(text: str | None) -> list[float] | None:
    """`0.1,0.3` as numbers."""
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--scales {text}: give numbers with commas, as in 0.1,0.3.") from error
    if not all(math.isfinite(scale) and scale > 0 for scale in found):
        raise InputError(f"--scales {text}: a scale is a finite number above 0.")
    return found


@app.command()
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
    from zo_objectives.language.hf import is_masked_folder
    from zo_objectives.sweep import parse_grid, plan_sweep, run_sweep

    _quiet_libraries()
    options = {"model": model, "data_dir": data_dir, "include_path": include_path, "objective": objective}
    settings = _settings(set_=set_, config=config, **options)
    names = [m.strip() for m in methods.split(",") if m.strip()]
    chosen = None if grid is None or grid == ["paper"] else parse_grid(grid)
    masked = is_masked_folder(str(settings.get("model", RunConfig.model_fields["model"].default)))
    points = plan_sweep(tasks, names, _seeds(seeds), chosen, settings, masked=masked, budget=budget)
    folder = output or Path("sweeps") / "-".join(Path(t).stem for t in tasks)
    with _interruptible():
        path = run_sweep(points, folder, show=not quiet, say=typer.echo)
    _print_sweep(pd.read_csv(path))
    typer.echo(f"\nTable: {path}")


@app.command()
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
    _quiet_libraries()
    from zo_objectives.study import run_study
    from zo_objectives.study_file import read_study
    from zo_objectives.study_plan import Places, plan_study
    from zo_objectives.study_tables import sentences

    data, where, include = (None if path is None else str(path) for path in (data_dir, models, include_path))
    folder = output or Path("studies") / file.stem
    tasks = [name.strip() for name in (only or "").split(",") if name.strip()]
    plan = plan_study(read_study(file), Places(data, where, include, device), folder, tasks)
    with _interruptible():
        found = run_study(plan, workers=jobs, command=_command(), show=not quiet, say=typer.echo)
    _print_study(found)
    typer.echo("\n\n".join(sentences(found.differences)))
    _print_notes(found.notes)
    typer.echo(f"\nPage:  {folder / 'study.html'}\nTable: {folder / 'table.csv'}")
    if found.failures:
        raise RunError(f"{found.failures} of the study's runs could not be made; the notes above say why.")


def _print_study(found: Any) -> None:
    """A study on the terminal: mean and half width of the interval, difference, cost."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from zo_objectives.results import console
    from zo_objectives.study_tables import difference, score, table

    title = "test, mean ± half width of the 95 % interval over seeds; difference paired by seed"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("cell", "method", "value", "forwards", "against", "difference"):
        shown.add_column(column, justify="right" if column in ("value", "forwards") else "left")
    for cell, rows in table(found).groupby("cell", sort=False):
        for row in rows.to_dict("records"):
            against = (row["against"], difference(row)) if isinstance(row["against"], str) else ("", "")
            value = score(row, max(found.means["n_seeds"]))
            shown.add_row(str(cell), row["method"], value, f"{row['forwards']:,.0f}", *against)
        shown.add_section()
    console().print(shown)


def _print_sweep(frame: Any) -> None:
    from rich.table import Table

    from zo_objectives.results import console

    table = Table("task", "method", "point", "validation", "test", "", box=None)
    for (task, method), points in frame.groupby(["task", "method"], sort=False):
        for point, rows in points.groupby("point", sort=False):
            means = f"{rows['validation'].mean():.3f}", f"{rows['test'].mean():.3f}"
            table.add_row(str(task), str(method), str(point), *means, "chosen" if rows["chosen"].any() else "")
        table.add_section()
    console().print(table)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Comparisons or runs.")],
    output: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one HTML page about several comparisons or runs."""
    from zo_objectives.report import write_report

    typer.echo(f"Report: {write_report(folders, output)}")


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    output: Annotated[Path, typer.Option(help="Where to write the model, as transformers reads it.")],
    step: Annotated[int | None, typer.Option(help="After how many steps; the best on validation where not given.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Where the base model is now, if it has moved.")] = None,
) -> None:
    """Make a model from a run's journal: no data, no forward pass."""
    from zo_objectives.replay import export

    _quiet_libraries()
    found = export(folder, output, step, model)
    typer.echo(f"Model after step {found.step} of {found.steps}: {output}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    model: Annotated[str | None, typer.Option("--model", help="Where the base model is now, if it has moved.")] = None,
) -> None:
    """Check that a run's journal leads to the weights it saved, bit for bit."""
    from zo_objectives.replay import verify as check

    _quiet_libraries()
    typer.echo(check(folder, model))


@app.command()
def bench(
    part: Annotated[
        list[str] | None,
        typer.Argument(help="noise, step, memory, journal, members, trunk, start; all where none is given."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where bench.csv and the plot go.")] = Path("zo-bench"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    shape: Annotated[str, typer.Option(help="OPT's shape for step, memory and members: 125m, 1.3b, 2.7b, 6.7b.")] = "125m",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; medians are reported.")] = 5,
    model: Annotated[str, typer.Option("--model", help="The model of part trunk.")] = "reviews-1m",
    data_dir: DataDir = None,
) -> None:
    """Measure what a step costs on this machine, against plain forwards and against reference MeZO."""
    from zo_objectives.bench import measure, show, title, write
    from zo_objectives.timing import Setting, check

    _quiet_libraries()
    setting = check(Setting(device, dtype, shape, repeat, model, str(data_dir) if data_dir else None))
    with _interruptible():
        rows = measure(setting, part or [], lambda row: typer.echo(f"{row.part:<8} {row.told}"))
    show(rows, title(setting))
    typer.echo(f"\nTable: {write(rows, setting, output, _command())}")


@app.command()
def memory(
    shapes: Annotated[str, typer.Option(help="OPT's: 125m, 350m, 1.3b, 2.7b, 6.7b, 13b, 30b, 66b; by commas.")] = "125m",
    forms: Annotated[str | None, typer.Option(help="inference, icl, mezo, ft, ...; by commas; all where not given.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of a text.")] = 400,
    batch: Annotated[int, typer.Option(help="Texts in a batch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Where memory.csv and memory.md go; cells that are there are kept.")] = Path(
        "zo-memory"
    ),
    attention: Annotated[str, typer.Option(help="sdpa, or eager as in 2023.")] = "sdpa",
    limit_gib: Annotated[
        float | None, typer.Option("--limit-gib", min=0, help="Measure nothing larger, 0: nothing; what is free else.")
    ] = None,
) -> None:
    """Measure what a step needs: inference, ICL, MeZO, fine-tuning; by arithmetic where it does not fit here."""
    _quiet_libraries()
    from zo_objectives.memory import Plan, measure
    from zo_objectives.memory_table import show

    asked, some = (tuple(s.strip().lower() for s in names.split(",") if s.strip()) for names in (shapes, forms or ""))
    plan = Plan(asked, some or Plan.forms, tokens, batch, device, attention, limit_gib)
    with _interruptible():
        found = measure(plan, output, _command(), lambda record: typer.echo(record.told))
    show(found)
    typer.echo(f"\nPage:  {output / 'memory.md'}\nTable: {output / 'memory.csv'}")


@tasks_app.command("ls")
def tasks_ls(include_path: Include = None) -> None:
    """Every task: its form, metric and what it is."""
    from rich.table import Table

    from zo_objectives.language.tasks import read_task, task_files
    from zo_objectives.results import console

    table = Table("task", "form", "metric", "about", box=None)
    for name, path in task_files(include_path).items():
        try:
            spec = read_task(path)
        except InputError as error:
            table.add_row(name, "[red]broken", "", str(error))
            continue
        form = "choice" if spec.output_type == "multiple_choice" else "generation"
        table.add_row(name, form, (spec.metrics or (spec.zo.objective or "",))[0], str(spec.metadata.get("about", "")))
    console().print(table)


@tasks_app.command("show")
def tasks_show(name: str, include_path: Include = None) -> None:
    """A task's file."""
    from zo_objectives.language.tasks import find_task

    path = find_task(name, include_path)
    typer.echo(f"# {path}\n{path.read_text(encoding='utf-8').rstrip()}")


@tasks_app.command("validate")
def tasks_validate(
    names: Annotated[
        list[str] | None, typer.Argument(help="Task names or YAML files; all tasks where none is given.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and context to check with.")] = "reviews-1m",
    data_dir: DataDir = None,
    include_path: Include = None,
) -> None:
    """Load every task's data, render and tokenise it, and say what is wrong."""
    from zo_objectives.language.hf import load
    from zo_objectives.language.tasks import task_files
    from zo_objectives.validate import validate

    _quiet_libraries()
    problems = 0
    lm = load(model)
    for name in names or task_files(include_path):
        for line, good in validate(name, lm, data_dir, include_path):
            problems += not good
            typer.echo(line, err=not good)
    if problems:
        raise typer.Exit(2)


@objectives_app.command("ls")
def objectives_ls() -> None:
    """Every objective that has a name: its definition, range and source. All are better the higher they are."""
    from rich.table import Table

    from zo_objectives.language.listing import OTHERS, rows
    from zo_objectives.results import console

    table = Table("objective", "what it is", "range", "source", box=None)
    for row in rows():
        name = f"{row.name} ({row.aliases})" if row.aliases else row.name
        table.add_row(name, row.about, row.bounds, row.source)
    console().print(table)
    typer.echo(f"\n{OTHERS}")


def _quiet_libraries() -> None:
    """Environment of the heavy libraries, before they are imported: threads that wait do not spin, no telemetry."""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine down tenfold
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def guarded(command: Callable[[], Any]) -> int:
    """Runs `command` and turns its outcome into a message and an exit code."""
    try:
        command()
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        return 2
    except RunError as error:
        typer.echo(f"The run failed: {error} Give the same command to go on from where it stopped.", err=True)
        return 1
    return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; `arguments` are the command line's where not given. Ends in SystemExit."""
    sys.exit(guarded(lambda: app(args=arguments)))
