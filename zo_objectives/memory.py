"""`zo-objectives memory`: what a step of each form needs, at one dtype and at MeZO's mixed ones, which explains its ratios.

What the forms are, how a cell is measured, and how it is counted where it is not: memory_forms.py. Tables: memory_table.py.
"""

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from zo_objectives.errors import InputError, RunError, unknown
from zo_objectives.memory_forms import ATTENTION, CONTEXT, FORMS, PREFIX, SHAPES, Cell, Counted, command, count
from zo_objectives.memory_table import SETTINGS, Found, Record, page, read_csv, to_csv
from zo_objectives.results import machine, make_folder, versions, write_atomically

MIB = 2**20
LARGEST = 1_400_000_000  # parameters that are measured on a CPU: beyond, a step takes minutes
SLACK, LIBRARIES = 1.03, 512  # a cell is taken to need so many times what is counted, and so many MiB more
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc: what is freed is given back at once


@dataclass(frozen=True)
class Plan:
    """What to measure, and where; no measured cell is larger than `limit_gib`."""

    shapes: tuple[str, ...]
    forms: tuple[str, ...] = tuple(FORMS)
    tokens: int = 400
    batch: int = 1
    device: str = "cpu"
    attention: str = "sdpa"
    limit_gib: float | None = None

    def cell(self, shape: str, form: str, dtype: str) -> Cell:
        return Cell(shape, form, dtype, self.tokens, self.batch, self.device, self.attention)


def check(plan: Plan) -> Plan:
    """The plan, if it can be done here. Raises InputError."""
    if strange := [s for s in plan.shapes if s not in SHAPES]:
        raise unknown("shape", strange[0], SHAPES)
    if not plan.shapes:
        raise InputError(f"--shapes names no shape. Known: {', '.join(SHAPES)}.")
    if strange := [f for f in plan.forms if f not in FORMS]:
        raise unknown("form", strange[0], FORMS)
    if not 2 <= plan.tokens <= CONTEXT - PREFIX:
        raise InputError(
            f"--tokens {plan.tokens}: give 2 to {CONTEXT - PREFIX}; OPT reads {CONTEXT}, a prefix takes {PREFIX}."
        )
    if plan.batch < 1:
        raise InputError(f"--batch {plan.batch}: give at least 1.")
    if plan.device.partition(":")[0] not in ("cpu", "cuda"):
        raise unknown("device", plan.device, ("cpu", "cuda"))
    if plan.attention not in ATTENTION:
        raise unknown("attention", plan.attention, ATTENTION)
    if plan.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("No CUDA device is available here. Use --device cpu.")
    if importlib.util.find_spec("peft") is None:
        raise InputError("The forms with LoRA and prefixes need peft. Install it with: pip install 'zo-objectives[peft]'.")
    return plan


def cells(plan: Plan) -> Iterator[Cell]:
    """Every cell once, in the order of shapes and forms."""
    for shape in dict.fromkeys(plan.shapes):
        for form in dict.fromkeys(plan.forms):
            for dtype in dict.fromkeys(dtypes[FORMS[form].backprop] for dtypes in SETTINGS.values()):
                yield plan.cell(shape, form, dtype)


def free_mib(device: str) -> float:
    """Memory that nobody uses: the device's, or what Linux says is available, or half of all there is."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0]) / MIB
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB / 2


def fits(plan: Plan, parameters: int, counted_mib: float) -> bool:
    """Whether a cell is to be measured here and now."""
    quick = parameters <= LARGEST or plan.device.startswith("cuda")
    limit = float("inf") if plan.limit_gib is None else plan.limit_gib * 1024
    return quick and counted_mib * SLACK + LIBRARIES <= min(free_mib(plan.device), limit)


def measured(cell: Cell) -> float | None:
    """MiB that a process of its own needed; None where the system ended it for want of memory. Raises RunError."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **MALLOC}
    done = subprocess.run(command(cell), capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return int(done.stdout.split()[-1]) / MIB
    if done.returncode == -9 or "out of memory" in done.stderr.lower():
        return None
    said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise RunError(f"OPT-{cell.shape}, {cell.form}, {cell.dtype}: {said.rstrip('.')}.")


def record(cell: Cell, counted: Counted, peak: float | None) -> Record:
    """What was found about a cell; arithmetic where there is no measured `peak`."""
    living, *parts = (round(n / MIB, 1) for n in (counted.peak, counted.weights, counted.gradients, counted.optimizer))
    kind, best = ("arithmetic", living) if peak is None else ("measured", round(peak, 1))
    of = (cell.shape, counted.parameters, cell.form, cell.dtype, cell.length, cell.batch, cell.device, cell.attention)
    return Record(*of, kind, best, living, *parts)


def kept(plan: Plan, path: Path) -> Found:
    """What a memory.csv has. Raises InputError where it is another plan's, or no such table."""
    found = Found(read_csv(path) if path.exists() else ())
    for one in found.records.values():
        cell = plan.cell(one.shape, one.form, one.dtype)
        if (one.tokens, one.batch, one.device, one.attention) != (cell.length, cell.batch, cell.device, cell.attention):
            have = f"{one.form} at {one.tokens} tokens x {one.batch}, {one.device}, {one.attention}"
            raise InputError(f"{path} is of other settings ({have}). Choose another --output.")
    return found


def measure(plan: Plan, output: Path, told: str, say: Callable[[Record], None]) -> Found:
    """Finds every cell, and writes memory.csv after each. Raises InputError, RunError.

    Cells that the file has are kept, but for those by arithmetic that can be measured now. `told` is the command.
    """
    check(plan)
    path = make_folder(output) / "memory.csv"
    found = kept(plan, path)
    for cell in cells(plan):
        old = found.records.get((cell.shape, cell.form, cell.dtype))
        if old is not None and (old.kind == "measured" or not fits(plan, old.parameters, old.counted_mib)):
            continue
        counted = count(cell)
        peak = measured(cell) if fits(plan, counted.parameters, counted.peak / MIB) else None
        new = record(cell, counted, peak)
        found.records[new.key] = new
        say(new)
        write_atomically(path, to_csv(found))
    _write(plan, found, output, told)
    return found


def _write(plan: Plan, found: Found, output: Path, told: str) -> None:
    """memory.csv, memory.md, and memory.json: the command, versions, machine."""
    about = {"command": told, "plan": asdict(plan), "machine": machine(), "versions": versions()}
    write_atomically(output / "memory.csv", to_csv(found))
    write_atomically(output / "memory.md", page(found, _about(plan, found)))
    write_atomically(output / "memory.json", json.dumps(about, indent=1) + "\n")


def _about(plan: Plan, found: Found) -> list[str]:
    """What was done, in words."""
    number, least, most = found.off()
    peak = "torch's peak" if plan.device.startswith("cuda") else "resident memory above what it was before there was a model"
    near = f" The {number} measured cells are {least:+.1%} to {most:+.1%} off it." if number else ""
    return [
        f"OPT's shapes with random weights, {plan.batch} x {plan.tokens} tokens, {plan.device}, attention {plan.attention}."
        " Rows: memory.csv.",
        "\n".join(f"- {name}: {form.told}" for name, form in FORMS.items()),
        f"Measured: one step, two with backprop, in a process of their own, {peak}, at most. Arithmetic (`~`): the same by"
        " the same code on tensors without elements, the bytes of all living storages added up: weights, gradients, AdamW's"
        f" moments, activations, scratch; not what kernels need inside, nor what an allocator wastes.{near}",
        "AdamW is torch's fused one, dropout is OPT's, logits go to float32, gradients are freed after each step, and MeZO"
        " keeps no second copy of the weights (store `inference`).",
    ]
