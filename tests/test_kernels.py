"""Kernels: the same bits as the eager passes, only where that pays, and never needed."""

import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import CPU, DTYPES, FIXED, LAWS
from torch import Tensor

from zo_objectives.search import kernels, noise, rounding
from zo_objectives.search.kernels import Fused, Kernels
from zo_objectives.search.noise import Law
from zo_objectives.search.rounding import round_into

KEYS = st.integers(0, 2**64 - 1)
PAIRS = sorted({(to, of) for _, to, of in kernels.SYMBOLS.values()}, key=str)
every_law = pytest.mark.parametrize("law", LAWS)


@pytest.fixture(scope="session")
def compiled() -> Kernels:
    """Kernels, compiled once for all tests."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("no C compiler")
    made = Kernels(payback=0)
    assert made.warm()
    return made


@pytest.fixture
def threads() -> Iterator[None]:
    """Two of them, and every piece of work large enough to be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numbers(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of many sizes, both signs and zero."""
    return (torch.linspace(-1, 1, n).pow(9) * 3).to(dtype)


def axpy(using: Kernels, law: Law, out: Tensor, base: Tensor, start: int = 0, c: float = 0.3, key: int = 5) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "on_cpu", using)
        spent = using.spent
        noise.axpy(law, out, base, key, 8, c, start)
    assert not using.functions or using.spent == spent  # with kernels, nothing was eager
    return out


def eager() -> Kernels:
    return Kernels(payback=math.inf)


# The same bits.


def test_eager_passes_give_the_known_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(what: str, out: Tensor, base: Tensor, start: int, tensor: int, key: int, c: float, table: Tensor) -> None:
        monkeypatch.setattr(noise, "_normal_table", lambda device: table)
        if what == "round":
            round_into(out, base, key, tensor, start)
        else:
            noise.axpy({"signs": Law.RADEMACHER, "normals": Law.GAUSSIAN}[what], out, base, key, tensor, c, start)

    assert kernels.known_answers(run) == kernels.KNOWN_ANSWERS


def test_kernels_give_the_known_answers(compiled: Kernels) -> None:
    assert kernels.known_answers(compiled.run) == kernels.KNOWN_ANSWERS


@every_law
@pytest.mark.parametrize(("to", "of"), PAIRS)
def test_kernels_have_the_same_bits(law: Law, to: torch.dtype, of: torch.dtype, compiled: Kernels) -> None:
    for n, start in [(1, 0), (0, 9), (127, 128), (5000, 0), (4097, 4095), (300, 2**33 + 77)]:
        out, base = torch.empty(n, dtype=to), numbers(n, of)
        assert torch.equal(axpy(compiled, law, out, base, start), axpy(eager(), law, out.clone(), base, start))


@every_law
@FIXED
@given(
    key=KEYS,
    c=st.floats(width=32, allow_nan=False, allow_infinity=False),
    start=st.integers(0, 2**32),
    n=st.integers(0, 700),
)
def test_kernels_have_the_same_bits_for_any_numbers(
    law: Law, key: int, c: float, start: int, n: int, compiled: Kernels
) -> None:
    base = numbers(n)
    results = [axpy(k, law, torch.empty(n), base, start, c, key) for k in (compiled, eager())]
    assert torch.equal(*results)


@every_law
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_work_in_place_and_in_pieces(law: Law, dtype: torch.dtype, compiled: Kernels) -> None:
    base = numbers(9000, dtype)
    expected = axpy(eager(), law, torch.empty_like(base), base, start=50)
    for cut in (0, 1, 128, 4096, 8999):
        out = base.clone()
        axpy(compiled, law, out[:cut], out[:cut], start=50)
        axpy(compiled, law, out[cut:], out[cut:], start=50 + cut)
        assert torch.equal(out, expected)


@every_law
def test_kernels_do_not_depend_on_the_thread_count(
    law: Law, compiled: Kernels, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = numbers(300_000)
    whole = axpy(compiled, law, torch.empty_like(base), base, 33)
    monkeypatch.setattr(kernels, "GRAIN", 1 << 30)  # one thread
    assert torch.equal(axpy(compiled, law, torch.empty_like(base), base, 33), whole)
    assert torch.equal(axpy(eager(), law, torch.empty_like(base), base, 33), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [0, 5, 256])
def test_rounding_kernels_have_the_same_bits(
    dtype: torch.dtype, start: int, compiled: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, out = numbers(3000), [torch.empty(3000, dtype=dtype) for _ in range(2)]
    round_into(out[0], values, 5, 8, start)
    monkeypatch.setattr(kernels, "on_cpu", compiled)
    round_into(out[1], values, 5, 8, start)
    assert torch.equal(*out)


@every_law
@pytest.mark.parametrize("span", [range(0), range(9, 300), range(9, 9000)])
@pytest.mark.parametrize("count", [1, 3])
def test_directions_have_the_same_bits(
    law: Law, span: range, count: int, compiled: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = noise.directions(law, range(count), 8, span, CPU)
    monkeypatch.setattr(kernels, "on_cpu", compiled)
    assert torch.equal(noise.directions(law, range(count), 8, span, CPU), found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_other_devices_compile_has_the_same_bits(dtype: torch.dtype) -> None:
    for n, start in [(1, 0), (129, 384), (5000, 128)]:
        base, out = numbers(n, dtype), torch.empty(n, dtype=dtype)
        state, first = noise.state_of([5], Law.RADEMACHER.value, 8, CPU)[0], torch.tensor(start // 128)
        noise._axpy_signs(out, base, state, first, torch.tensor(0.3))
        assert torch.equal(out, axpy(eager(), Law.RADEMACHER, out.clone(), base, start))


# Only where it pays, and never needed.


def test_a_kernel_is_compiled_after_the_payback(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(kernels, "compile_into", lambda folder: asked.append(folder))
    monkeypatch.setattr(kernels, "load", lambda library: {("what", CPU, CPU): None})
    monkeypatch.setattr(kernels, "known_answers", lambda run: kernels.KNOWN_ANSWERS)
    young = Kernels(payback=1e-9)
    assert not young.ready() and not asked
    with young.eager():
        pass
    assert young.spent > 1e-9
    assert young.ready() and young.warm() and young.ready()
    assert len(asked) == 1 and not asked[0].exists()  # what was compiled is in memory only


def test_other_tensors_are_left_alone(compiled: Kernels) -> None:
    out, base = torch.zeros(64), torch.ones(64)
    for unfit, other in [
        (out[::2], base[:32]),
        (out[:32], base[::2]),
        (out.view(8, 8), base.view(8, 8)),
        (out[:32], base),
        (out.double(), base.double()),
        (out, base.bfloat16()),
        (out.to("meta"), base.to("meta")),
    ]:
        assert not compiled.run("signs", unfit, other, 0, 8, 5, 0.3)
    assert not compiled.run("round", out, base, 0, 8, 5) and not out.any()
    strided = axpy(eager(), Law.RADEMACHER, torch.zeros(64)[::2], base[:32])
    assert torch.equal(strided, axpy(compiled, Law.RADEMACHER, torch.zeros(32), base[:32]))


def script(folder: Path, text: str) -> str:
    """A stand-in for a C compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


FAILING = {
    "fails": ("echo 'noise.c: no' >&2; exit 1", "RuntimeError: .*noise.c: no"),
    "writes nothing": ("exit 0", "OSError"),
    "writes rubbish": ('while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"', "OSError"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_compiler_that_fails_is_named_once_and_changes_no_bit(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = FAILING[case]
    monkeypatch.setenv("CC", script(tmp_path, text))
    broken, base = Kernels(payback=0), numbers(500)
    with pytest.warns(UserWarning, match=f"slower.*{message}"):
        result = axpy(broken, Law.RADEMACHER, torch.empty(500), base)
    assert torch.equal(axpy(broken, Law.RADEMACHER, torch.empty(500), base), result)  # a second warning would be an error
    assert broken.broken and broken.spent > 0
    assert torch.equal(axpy(eager(), Law.RADEMACHER, torch.empty(500), base), result)


def test_no_compiler_at_all_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="install gcc or clang"):
        assert not Kernels().warm()


def test_code_that_gives_other_numbers_is_not_used(compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compile_into", lambda folder: folder)
    monkeypatch.setattr(
        kernels, "load", lambda library: {**compiled.functions, ("signs", *PAIRS[0]): lambda *arguments: None}
    )
    with pytest.warns(UserWarning, match="other numbers"):
        assert not Kernels().warm()


def test_a_compiler_without_openmp_will_do(tmp_path: Path, compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", script(tmp_path, 'case "$*" in *fopenmp*|*native*) exit 1;; esac; exec cc "$@" -O0'))
    plain = Kernels()
    assert plain.warm()
    base = numbers(3000)
    assert torch.equal(*(axpy(k, Law.GAUSSIAN, torch.empty(3000), base, 7) for k in (plain, compiled)))


def test_functions_for_other_devices_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: made.append(function) or function)
    fused, out = Fused(), torch.zeros(3)
    assert fused.run(torch.Tensor.add_, out, torch.ones(3)) and fused.run(torch.Tensor.add_, out, torch.ones(3))
    assert made == [torch.Tensor.add_] and out.tolist() == [2, 2, 2]


@pytest.mark.parametrize("when", ["compiling", "running"])
def test_functions_that_cannot_be_compiled_are_said_once(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no Triton")

    monkeypatch.setattr(torch, "compile", fail if when == "compiling" else lambda function, dynamic: fail)
    fused = Fused()
    with pytest.warns(UserWarning, match="RuntimeError.*stays eager"):
        assert not fused.run(fail, torch.ones(3))
    assert not fused.run(fail, torch.ones(3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_compile_keeps_the_bits(dtype: torch.dtype) -> None:
    fused = Fused()
    state = noise.state_of([5], Law.RADEMACHER.value, 8, CPU)[0]
    for n, start in [(1, 0), (129, 384), (5000, 128)]:
        base, out = numbers(n, dtype), torch.empty(n, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            assert fused.run(noise._axpy_signs, out, base, state, torch.tensor(start // 128), torch.tensor(0.3))
        assert torch.equal(out, axpy(eager(), Law.RADEMACHER, out.clone(), base, start))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_what_rounds_on_other_devices_has_the_same_bits(dtype: torch.dtype) -> None:
    """The function that would be compiled there, run here."""
    values = torch.cat([torch.linspace(-1, 1, 1000) ** 5, torch.tensor([0.0, 1e-7, -6e-8, 70000.0, 1e-40])])
    for start in (0, 24):
        here, there = torch.empty(len(values), dtype=dtype), torch.empty(len(values), dtype=dtype)
        round_into(here, values, 5, 8, start)
        rounding._round(there, values, noise.state_of([5], noise.ROUNDING, 8, CPU)[0], torch.tensor(start // 8))
        assert torch.equal(here.view(torch.int16), there.view(torch.int16))
