"""One run: a method, a task, a model and a seed, in a folder of its own that can be left and taken up again."""

from collections.abc import Callable
from pathlib import Path

import torch

from zo_objectives import judged, selection, starts
from zo_objectives.active_run import Run
from zo_objectives.adapters import ADAPTERS, forms
from zo_objectives.baselines import BASELINES
from zo_objectives.climbing import zeroth_order
from zo_objectives.config import RunConfig
from zo_objectives.config_files import difference, dump, identity, read_config
from zo_objectives.errors import InputError
from zo_objectives.handover import handed_over
from zo_objectives.results import make_folder, write_atomically
from zo_objectives.search import journal
from zo_objectives.workbench import Workbench

NOTES = "notes.txt"  # what a reader of a run's results should know
Earlier = Callable[[RunConfig, Path], Path]  # where the run is that a run in a folder begins with


def begun(folder: Path) -> bool:
    """Whether anything worth keeping was written to a run's folder. Raises InputError for a half-written one."""
    if not any((folder / name).exists() for name in ("journal.zoj", "history.csv", "results.csv")):
        return False
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a half-written run folder without config.yaml. Remove it or choose another --output.")
    path = folder / "journal.zoj"
    if path.exists() and not (folder / "history.csv").exists() and len(journal.read(path)[1]):
        raise InputError(
            f"{folder} has steps in its journal but no history.csv. Restore that file or choose another --output."
        )
    return True


def inside(before: RunConfig, output: Path) -> Path:
    """The run before in the folder of the one that begins where it ends."""
    return output / "before"


def execute(
    config: RunConfig, output: Path, *, bench: Workbench | None = None, show: bool = True, earlier: Earlier = inside
) -> Path:
    """Runs `config` in folder `output`, or goes on with the run that is there; a finished run is left as it is.

    A run before it, which `earlier` says the place of, comes first; what it ends with is kept in `output`. Returns the
    folder. Raises InputError for wrong input or a folder of another run, RunError where the run fails.
    """
    starts.check(config)
    make_folder(output)
    there, finished = begun(output), (output / "results.csv").exists()
    if there and (differing := difference(identity(read_config(output)), identity(config))):
        name, was, now = differing
        raise InputError(
            f"{output} holds another run: {name} was {was!r} there, and is {now!r} now. Choose another --output."
        )
    changed = judged.keep(output, config, bench.own if bench is not None else None, begun=there, finished=finished)
    if finished:
        return output
    if bench is None or not bench.serves(config):
        bench = Workbench.open(config, bench.own if bench is not None else None)
    write_atomically(output / "config.yaml", dump(config))
    if there:
        starts.check_labels(output, bench.lm)
    else:
        starts.keep_labels(output, bench.lm)
    if config.before is not None and not starts.is_kept(output, config.before):
        place = earlier(config.before, output)
        execute(config.before, place, bench=bench, show=show, earlier=earlier)
        keep_start(config.before, place, output, bench)
    selection.check(config, bench.metrics[0])
    run = Run(bench, config, output, show=show)
    run.notes += changed
    with torch.no_grad():
        rows = BASELINES[config.method](run) if config.method in BASELINES else zeroth_order(run)
    if run.notes:
        write_atomically(output / NOTES, "\n".join(run.notes) + "\n")
    run.save(rows)
    return output


def keep_start(before: RunConfig, place: Path, output: Path, bench: Workbench) -> None:
    """Keeps in `output` what the finished run `before` in `place` ended with."""
    pool = bench.fresh()
    bench.stale = any(form in ADAPTERS for form, _ in forms(before.tuned))  # they are merged into this model
    starts.keep_start(output, handed_over(pool, place, before), before, starts.ended(place))
