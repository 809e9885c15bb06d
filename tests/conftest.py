"""What every test begins with."""

import math
import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tensors of a few numbers a second thread is only waited for


@pytest.fixture(autouse=True)
def eager_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise stays eager, however long the session: a test that wants kernels makes its own."""
    if kernels := sys.modules.get("zo_objectives.search.kernels"):
        monkeypatch.setattr(kernels, "on_cpu", kernels.Kernels(payback=math.inf))
        monkeypatch.setattr(kernels, "elsewhere", kernels.Fused())
