"""Commands that measure this machine: bench, memory."""

from pathlib import Path
from typing import Annotated

import typer

from zo_objectives.cli.options import DataDir, names_in
from zo_objectives.cli.session import command_line, interruptible, quiet_libraries


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

    quiet_libraries()
    setting = check(Setting(device, dtype, shape, repeat, model, str(data_dir) if data_dir else None))
    with interruptible():
        rows = measure(setting, part or [], lambda row: typer.echo(f"{row.part:<8} {row.told}"))
    show(rows, title(setting))
    typer.echo(f"\nTable: {write(rows, setting, output, command_line())}")


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
    quiet_libraries()
    from zo_objectives.memory import Plan, measure
    from zo_objectives.memory_table import show

    asked, some = (tuple(name.lower() for name in names_in(text)) for text in (shapes, forms or ""))
    plan = Plan(asked, some or Plan.forms, tokens, batch, device, attention, limit_gib)
    with interruptible():
        found = measure(plan, output, command_line(), lambda record: typer.echo(record.told))
    show(found)
    typer.echo(f"\nPage:  {output / 'memory.md'}\nTable: {output / 'memory.csv'}")
