"""Kernels: noise.c, compiled by this machine's C compiler (under two seconds) once that pays, and loaded into the process.

A kernel changes time only, never a bit: one that does not give the known answers is not used. Where there is no compiler,
and for tensors that are not on a CPU, flat, contiguous and of a dtype that noise.c lists, `run` does nothing and says so.
"""

import ctypes
import itertools
import os
import shlex
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("noise.c")
PAYBACK = 0.5  # seconds spent in eager passes before compiling, which costs about as much
GRAIN = 1 << 17  # elements that are worth a thread
FLAGS = "-O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -shared -fPIC"  # all of them keep to IEEE 754
EXTRAS = ("-march=native -fopenmp", "-march=native", "")  # the first that the compiler knows
ARGUMENTS = (
    *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint64),
    *(ctypes.c_float, ctypes.c_void_p, ctypes.c_int),
)
KNOWN_ANSWERS = "cc2758250bf6c482e125bdd541468157568238ab0671d6b04a9067a957291c08"

Signature = tuple[str, torch.dtype, torch.dtype]  # what is done, dtype out, dtype in
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
DONE = {"signs": "f32_f32 bf16_bf16 f16_f16 bf16_f32 f16_f32", "normals": "f32_f32 bf16_bf16 f16_f16 bf16_f32 f16_f32"}
DONE |= {"round": "bf16_f32 f16_f32"}


def _signature(symbol: str) -> Signature:
    what, to, of = symbol.split("_")
    return what, TYPES[to], TYPES[of]


SYMBOLS = {f"{what}_{pair}": _signature(f"{what}_{pair}") for what, pairs in DONE.items() for pair in pairs.split()}


def compile_into(folder: Path) -> Path:
    """The shared library made of noise.c, in `folder`. Raises where there is no compiler, or none that can."""
    wanted = (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"])
    compiler = next((words for words in wanted if words and shutil.which(words[0])), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler: install gcc or clang, or set CC")
    library, complaint = folder / "noise.so", ""
    for extra in EXTRAS:
        command = [*compiler, *FLAGS.split(), *extra.split(), "-o", str(library), str(SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode == 0:
            return library
        complaint = next(iter(done.stderr.splitlines()), f"exit code {done.returncode}")
    raise RuntimeError(f"{compiler[0]}: {complaint}")


def load(library: Path) -> dict[Signature, Any]:
    """The functions of a compiled noise.c."""
    functions, opened = {}, ctypes.CDLL(str(library.resolve()))
    for symbol, signature in SYMBOLS.items():
        function = opened[symbol]
        function.argtypes, function.restype = ARGUMENTS, None
        functions[signature] = function
    return functions


def known_answers(run: Callable[..., object]) -> str:
    """SHA-256 of what `run` (as `Kernels.run`) gives for every signature, on numbers of all sizes, with c of all sizes."""
    spread = (torch.arange(2000, dtype=torch.int32) * 0x3C6EF373).view(torch.float32)
    spread[~spread.isfinite()] = 0
    table, digest = torch.arange(-(1 << 15), 1 << 15, dtype=torch.float32) / 8192, sha256()
    for (what, to, of), c in itertools.product(SYMBOLS.values(), (0.3, 3e-6, 1e-40)):
        out = torch.empty(len(spread), dtype=to)
        run(what, out, spread.to(of), 77, 0x243F6A8885A308D3, 0x13198A2E03707344, c, table)
        digest.update(out.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Kernels:
    """What this process has compiled: nothing, until `payback` seconds have gone into `eager` passes.

    Where compiling fails it warns, once, and never tries again.
    """

    def __init__(self, payback: float = PAYBACK) -> None:
        self.payback, self.spent, self.broken = payback, 0.0, False
        self.functions: dict[Signature, Any] = {}

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Around a pass that no kernel made."""
        began = time.perf_counter()
        yield
        self.spent += time.perf_counter() - began

    def warm(self) -> bool:
        """Compiles now, where that has not been done; whether there are kernels."""
        if not self.functions and not self.broken:
            try:
                with TemporaryDirectory(prefix="zo-objectives-") as folder:
                    self.functions = load(compile_into(Path(folder)))
                if known_answers(self.run) != KNOWN_ANSWERS:
                    raise RuntimeError("the compiled code gives other numbers")
            except Exception as error:
                self.functions, self.broken = {}, True
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(f"Noise stays as it is, which is slower: it cannot be compiled here ({reason}).", stacklevel=2)
        return bool(self.functions)

    def ready(self) -> bool:
        """Whether there are kernels by now."""
        return bool(self.functions) or (self.spent >= self.payback and self.warm())

    def run(
        self,
        what: str,
        out: Tensor,
        base: Tensor,
        start: int,
        tensor: int,
        key: int,
        c: float = 0.0,
        table: Tensor | None = None,
    ) -> bool:
        """Whether a kernel has done it: "signs" or "normals" (out = base + c * z), or "round"; if not, nothing happened."""
        if not _flat(out) or not _flat(base) or (count := out.numel()) != base.numel() or not self.ready():
            return False
        function = self.functions.get((what, out.dtype, base.dtype))
        if function is None:
            return False
        threads = min(torch.get_num_threads(), count // GRAIN) or 1
        at = None if table is None else table.data_ptr()
        function(out.data_ptr(), base.data_ptr(), count, start, tensor, key, c, at, threads)
        return True


def _flat(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dim() == 1 and tensor.is_contiguous()


class Fused:
    """Functions of tensors that are not on a CPU, compiled by torch.compile at first use, or never if that fails once."""

    def __init__(self) -> None:
        self.functions: dict[Callable[..., None], Callable[..., None]] = {}
        self.broken = False

    def run(self, function: Callable[..., None], *arguments: Tensor) -> bool:
        """Whether a compiled `function` has done it."""
        if not self.broken:
            try:
                if function not in self.functions:
                    self.functions[function] = torch.compile(function, dynamic=True)
                self.functions[function](*arguments)
            except Exception as error:
                self.broken = True
                warnings.warn(f"torch.compile does not work here ({type(error).__name__}); noise stays eager.", stacklevel=3)
        return not self.broken


on_cpu = Kernels()
elsewhere = Fused()
