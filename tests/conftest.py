"""What every test begins with."""

import sys

import pytest


@pytest.fixture(autouse=True)
def eager_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pays for eager seconds of the tests before it: a long session would start to compile in the middle."""
    if noise := sys.modules.get("zo_objectives.noise"):
        monkeypatch.setattr(noise, "compiler", noise._Compiler())
