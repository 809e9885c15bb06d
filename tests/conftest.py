"""What every test begins with."""

import math
import sys

import pytest


@pytest.fixture(autouse=True)
def eager_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise stays eager, however long the session: a test that wants kernels makes its own."""
    if kernels := sys.modules.get("zo_objectives.kernels"):
        monkeypatch.setattr(kernels, "on_cpu", kernels.Kernels(payback=math.inf))
        monkeypatch.setattr(kernels, "elsewhere", kernels.Fused())
