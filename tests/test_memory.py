"""Memory by form and dtype: what is counted is what there is, what is measured is near it, and cells are kept."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zo_objectives import memory
from zo_objectives.cli import main
from zo_objectives.errors import InputError, RunError
from zo_objectives.memory import MIB, Plan, cells, check, fits, measure, measured
from zo_objectives.memory_forms import AUTOCAST, DTYPES, FORMS, SHAPES, Cell, Counted, Step, _Living, build, count, opt
from zo_objectives.memory_table import Found, Record, page, read_csv, to_csv

SMALL = Plan(("tiny",), tokens=16, limit_gib=64)
TINY = Cell("tiny", "inference", "float32", tokens=16)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are measured; what is found is what would be counted in MiB of 10, and 1 more."""
    seen: list[Cell] = []
    monkeypatch.setattr(memory, "count", lambda cell: Counted(10, 4 * MIB, 1 * MIB, 2 * MIB, 10 * MIB))
    monkeypatch.setattr(memory, "measured", lambda cell: seen.append(cell) or 11.0)
    return seen


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("125m", 125_239_296), ("350m", 331_196_416), ("1.3b", 1_315_758_080), ("66b", 65_719_701_504)],
)
def test_shapes_are_those_of_the_published_models(shape: str, parameters: int) -> None:
    model = opt(Cell(shape, "inference", "bfloat16", device="meta"))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_350m_has_norms_after_its_layers_and_narrow_embeddings() -> None:
    names = dict(opt(Cell("350m", "inference", "float32", device="meta")).named_parameters())
    assert names["model.decoder.project_in.weight"].shape == (1024, 512)
    assert not any("final_layer_norm" in n and "layers" not in n for n in names)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["ft", "ft-lora", "ft-prefix", "mezo"])
def test_weights_gradients_and_moments_are_counted_to_the_byte(form: str, dtype: str) -> None:
    cell = replace(TINY, form=form, dtype=dtype)
    counted, step = count(cell), Step(cell, build(cell))
    assert counted.weights == sum(p.nbytes for p in step.model.parameters())
    before = [p.detach().clone() for p in step.tuned]
    step()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.tuned, strict=True)) or dtype == "bfloat16"
    if not FORMS[form].backprop:
        assert counted.gradients == counted.optimizer == 0
        return
    assert counted.gradients == sum(p.nbytes for p in step.tuned)
    states = step.optimizer.state.values()
    assert counted.optimizer == sum(s[k].nbytes for s in states for k in ("exp_avg", "exp_avg_sq"))
    assert all(s["exp_avg"].dtype == DTYPES[dtype] for s in states)


def test_what_lives_is_added_up() -> None:
    with _Living() as living:
        one = torch.zeros(1000)
        view = one.view(10, 100)[2:]
        two = one + 1
        del two
        one.add_(1)
        assert (living.now, living.peak) == (4000, 8000)
        del one
        assert living.now == 4000 and view.numel() == 800
        del view
        assert living.now == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mezo_needs_its_largest_layer_more_than_inference(dtype: str) -> None:
    plain, step = (count(Cell("125m", form, dtype)) for form in ("inference", "mezo"))
    layer = 50272 * 768 * (4 if dtype == "float32" else 2)
    assert layer <= step.peak - plain.peak <= 1.05 * layer
    assert step.weights == plain.weights


def test_checkpointing_and_lora_need_less() -> None:
    forms = ("ft", "ft-checkpointing", "ft-lora", "ft-lora-checkpointing")
    peaks = {form: count(Cell("125m", form, "bfloat16", tokens=800)).peak for form in forms}
    assert peaks["ft-lora-checkpointing"] < peaks["ft-lora"] < peaks["ft-checkpointing"] <= peaks["ft"]


def test_attention_that_is_written_out_keeps_tokens_squared() -> None:
    fused, eager = (count(replace(TINY, form="ft", tokens=512, attention=a)).peak for a in ("sdpa", "eager"))
    assert eager - fused == pytest.approx(2 * 2 * 512**2 * 4, rel=0.1)  # layers, heads


def test_a_process_of_its_own_needs_what_is_counted() -> None:
    """Sixty-odd MiB of weights, gradients, moments; the allocator, kernels and the machine add or spare a few."""
    cell = replace(TINY, form="ft")
    found = measured(cell)
    assert found is not None and found == pytest.approx(count(cell).peak / MIB, abs=12)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(cells(SMALL)), ids=lambda cell: f"{cell.form}-{cell.dtype}")
def test_every_cell_can_be_measured(cell: Cell) -> None:
    found = measured(cell)
    assert found is not None and found == pytest.approx(count(cell).peak / MIB, abs=20)


@pytest.mark.gpu
def test_a_gpu_needs_what_is_counted() -> None:
    cell = Cell("125m", "ft", "bfloat16", device="cuda")
    found = measured(cell)
    assert found is not None and found == pytest.approx(count(cell).peak / MIB, rel=0.1)


def test_a_process_that_fails_is_told_of_and_one_that_is_ended_is_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    def ending(code: str) -> Callable[[Cell], list[str]]:
        return lambda cell: [sys.executable, "-c", code]

    monkeypatch.setattr(memory, "command", ending("raise SystemExit('no such thing.')"))
    with pytest.raises(RunError, match=r"OPT-tiny, inference, float32: no such thing\.$"):
        measured(TINY)
    monkeypatch.setattr(memory, "command", ending("import os; os.kill(os.getpid(), 9)"))
    assert measured(TINY) is None


def test_cells_are_each_form_in_each_dtype_once() -> None:
    found = list(cells(SMALL))
    assert len(found) == len(set(found)) == 5 * 2 + 5 * 3
    assert {c.dtype for c in found if not FORMS[c.form].backprop} == {"bfloat16", "float32"}
    assert {c.length for c in found if c.form == "icl"} == {33 * 16}
    assert {c.length for c in cells(Plan(("tiny",))) if c.form == "icl"} == {2048}


def test_what_is_too_large_is_not_measured() -> None:
    assert fits(SMALL, 10, 10.0)
    assert not fits(SMALL, 10, 1e9)
    assert not fits(SMALL, 2_000_000_000, 10.0)
    assert not fits(replace(SMALL, limit_gib=0.5), 10, 10.0)


def test_rows_are_kept_and_arithmetic_gives_way_to_measuring(asked: list[Cell], tmp_path: Path) -> None:
    tight, told = replace(SMALL, limit_gib=0.1), list[Record]()
    found = measure(tight, tmp_path / "out", "the command", told.append)
    assert not asked and len(told) == 25 and {r.kind for r in told} == {"arithmetic"}
    assert all(r.peak_mib == r.counted_mib == 10 for r in told)
    assert measure(tight, tmp_path / "out", "", told.append).records == found.records and len(told) == 25
    rows = measure(SMALL, tmp_path / "out", "the command", told.append)
    assert len(asked) == 25 and {r.kind for r in rows.records.values()} == {"measured"}
    text = (tmp_path / "out" / "memory.csv").read_text()
    again = measure(replace(SMALL, shapes=("tiny", "tiny")), tmp_path / "out", "the command", told.append)
    assert len(asked) == 25 and again.records == rows.records and (tmp_path / "out" / "memory.csv").read_text() == text
    assert json.loads((tmp_path / "out" / "memory.json").read_text())["command"] == "the command"
    assert "+10.0% to +10.0%" in (tmp_path / "out" / "memory.md").read_text()


def test_a_table_of_something_else_is_left_alone(asked: list[Cell], tmp_path: Path) -> None:
    measure(SMALL, tmp_path, "", lambda record: None)
    with pytest.raises(InputError, match=r"is of other settings \(inference at 16 tokens x 1, cpu, sdpa\)"):
        measure(replace(SMALL, tokens=17), tmp_path, "", lambda record: None)
    strange = (tmp_path / "memory.csv").read_text().replace("mezo-lora", "mezo-laura")
    (tmp_path / "memory.csv").write_text(strange)
    with pytest.raises(InputError, match="is not a table of this command"):
        measure(SMALL, tmp_path, "", lambda record: None)
    (tmp_path / "memory.csv").write_text("task,value\nsums,1\n")
    with pytest.raises(InputError, match="is not a table of this command"):
        measure(SMALL, tmp_path, "", lambda record: None)
    assert (tmp_path / "memory.csv").read_text() == "task,value\nsums,1\n"


def invented(shape: str, kind: str = "measured") -> Found:
    """GiB: 2 of MeZO in 16 bits, 4 in float32, 8 of fine-tuning in 16 bits, 16 under autocast; 1 of everything else."""
    sizes = {("mezo", "bfloat16"): 2, ("mezo", "float32"): 4, ("ft", "bfloat16"): 8, ("ft", AUTOCAST): 16}
    found = []
    for c in cells(Plan((shape,))):
        size = 1024.0 * sizes.get((c.form, c.dtype), 1)
        found.append(Record(shape, 10, c.form, c.dtype, c.length, 1, "cpu", "sdpa", kind, size, 1024.0, 1, 1, 1))
    return Found(found)


def test_ratios_are_within_a_setting() -> None:
    found = invented("1.3b")
    assert found.ratio("paper", "1.3b", "ft", "mezo") == 8 and found.ratio("bfloat16", "1.3b", "ft", "mezo") == 4
    assert found.ratio("paper", "2.7b", "ft", "mezo") is None
    rows = [(r["setting"], r["dtype"], r["ratio"]) for r in found.rows() if r["form"] == "ft"]
    assert rows == [("paper", AUTOCAST, 16), ("bfloat16", "bfloat16", 8), ("float32", "float32", 1)]


def test_a_page_tells_measured_from_arithmetic_and_has_the_papers_figures() -> None:
    text = page(invented("1.3b"), ["about"])
    assert (
        "| 1.3b | 8.00 | 4.00 | 0.25 |" in text
        and "| 1.3b | 4 | 2.00 | 6 | 1.00 | 19 | 1.00 | 27 | 16.00 | 6.8 | 8.00 |" in text
    )
    assert "| 1.3b | ~8.00 | ~4.00 | ~0.25 |" in page(invented("1.3b", "arithmetic"), [])
    assert "Table 22" not in page(invented("tiny"), [])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = invented("350m")
    (tmp_path / "memory.csv").write_text(to_csv(found))
    assert Found(read_csv(tmp_path / "memory.csv")).records == found.records


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(("125",)), "Unknown shape '125'. Did you mean '125m'"),
        (Plan(("tiny",), ("ft", "mezzo")), "Unknown form 'mezzo'. Did you mean 'mezo'"),
        (Plan(()), "--shapes names no shape"),
        (Plan(("tiny",), tokens=2044), "--tokens 2044: give 2 to 2043"),
        (Plan(("tiny",), batch=0), "--batch 0: give at least 1"),
        (Plan(("tiny",), device="gpu"), "Unknown device 'gpu'"),
        (Plan(("tiny",), attention="flash"), "Unknown attention 'flash'"),
    ],
)
def test_wrong_plans_are_named(plan: Plan, message: str) -> None:
    with pytest.raises(InputError) as raised:
        check(plan)
    assert message in str(raised.value)


def test_the_command(asked: list[Cell], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["memory", *arguments])
        return ended.value.code, *capsys.readouterr()

    code, out, _ = call("--shapes", "tiny", "--tokens", "16", "--output", str(tmp_path / "out"))
    assert code == 0 and "ft-lora-ckpt" in out and (tmp_path / "out" / "memory.md").exists() and len(asked) == 25
    code, out, _ = call("--shapes", "tiny", "--forms", "mezo,ft", "--output", str(tmp_path / "some"))
    assert code == 0 and len(asked) == 25 + 5 and len(read_csv(tmp_path / "some" / "memory.csv")) == 6
    code, _, err = call("--shapes", "tiny,1.4b", "--output", str(tmp_path / "other"))
    assert code == 2 and "Unknown shape '1.4b'. Did you mean '1.3b'?" in err
    if not torch.cuda.is_available():
        code, _, err = call("--device", "cuda", "--output", str(tmp_path / "other"))
        assert code == 2 and "No CUDA device is available here" in err
    assert set(SHAPES) > {"125m", "350m", "66b"}
