"""TRL's reward functions run unchanged: the documented signature, async, conversational, several with weights, TRL's own."""

import asyncio
import threading
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from objective_batches import generated, labelled

from zo_objectives.errors import InputError, RunError
from zo_objectives.language.objectives import Failure, Scored, from_callable, from_trl, resolve, scoring

Messages = list[dict[str, str]]
BATCH = generated(["a b", "c", "d e f"], [[], [], []], answer=["b", "x", "f"])


def scored(objective: Any, batch: Any = BATCH) -> Scored:
    value = objective(*batch)
    assert isinstance(value, Scored)
    return value


def test_the_documented_signature() -> None:
    seen: dict[str, Any] = {}

    def reward(
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        answer: list[str],
        trainer_state: Any,
        log_extra: Any,
        log_metric: Any,
        **kwargs: Any,
    ) -> list[float | None]:
        seen.update(locals())
        log_extra("said", [c.upper() for c in completions])
        log_metric("longest", max(map(len, completions)))
        return [None if a == "x" else float(a in c) for a, c in zip(answer, completions, strict=True)]

    with scoring(step=3, steps=10, tokenize=lambda texts: [[len(t)] for t in texts]):
        score = scored(from_trl(reward))
    assert score == 1 and score.parts == {"longest": 5} and score.columns == {"said": ["A B", "C", "D E F"]}
    assert seen["prompts"] == ["prompt 0", "prompt 1", "prompt 2"] and seen["completion_ids"] == [[3], [1], [5]]
    assert (seen["trainer_state"].global_step, seen["trainer_state"].max_steps) == (3, 10)
    assert seen["kwargs"] == {"n": [0, 1, 2]}


def test_an_asynchronous_one_gives_the_same() -> None:
    async def reward(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.01)
        return [float(len(c)) for c in completions]

    class Reward:
        async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
            return await reward(completions)

    assert scored(from_trl(reward)) == scored(from_trl(Reward())) == scored(from_callable(reward)) == 3
    thread = threading.Thread(target=asyncio.run, args=(_inside(from_trl(reward)),))  # a notebook has a loop that runs
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


async def _inside(objective: Any) -> None:
    assert scored(objective) == 3


def test_asynchronous_ones_wait_together() -> None:
    async def slow(completions: list[str], **kwargs: Any) -> list[float]:
        await asyncio.sleep(0.2)
        return [1.0] * len(completions)

    start = time.perf_counter()
    assert scored(from_trl([slow] * 5)) == 5
    assert time.perf_counter() - start < 0.8


def right(completions: list[str], answer: list[str], **kwargs: Any) -> list[float | None]:
    """Whether the answer is there."""
    return [None if a == "x" else float(a in c) for a, c in zip(answer, completions, strict=True)]


def brief(completions: list[str], **kwargs: Any) -> list[float]:
    return [-float(len(c)) for c in completions]


def never(completions: list[str], **kwargs: Any) -> list[None]:
    return [None] * len(completions)


def test_several_are_added_for_each_completion_as_trl_does() -> None:
    score = scored(from_trl([right, brief], weights=[2, 0.5]))
    assert score == pytest.approx(((2 * 1 - 0.5 * 3) + (-0.5 * 1) + (2 * 1 - 0.5 * 5)) / 3)
    assert score.parts == {"right": 1, "brief": -3}
    assert score.columns["right"] == [1, None, 1]
    assert from_trl([right, brief]).name == "right+brief"
    assert scored(from_trl([right, never])) == 1, "a row to which nothing applies is left out"
    assert list(scored(from_trl([brief, brief])).parts) == ["brief#1", "brief#2"]


def test_nothing_that_applies_is_not_0() -> None:
    with pytest.raises(Failure, match="'never' returned None for every completion"):
        from_trl(never)(*BATCH)


def ends(completions: list[Messages], **kwargs: Any) -> list[float]:
    return [float(completion[0]["content"].endswith("f")) for completion in completions]


def test_conversational_ones_get_messages_where_they_are_asked_for() -> None:
    assert scored(from_trl(ends, conversational=True)) == pytest.approx(1 / 3)
    with pytest.raises(Failure) as caught:
        from_trl(ends)(*BATCH)
    assert "conversational=True" in str(caught.value) and "?format=conversational" in str(caught.value)
    with pytest.raises(Failure, match="conversational=True"):
        from_trl(ends)(*generated(["", "f"], [[], []]))


def test_they_get_messages_unasked_where_the_prompt_is_a_list_of_them() -> None:
    seen: list[Any] = []

    def reward(prompts: list[Messages], completions: list[Messages], **kwargs: Any) -> list[float]:
        seen.extend([prompts[0], completions[0]])
        return [1.0] * len(prompts)

    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    scored(from_trl(reward), generated(["hi"], [[]], prompt=[own]))
    assert seen == [own, [{"role": "assistant", "content": "hi"}]]
    scored(from_trl(reward, conversational=True))
    assert seen[2] == [{"role": "user", "content": "prompt 0"}]
    scored(from_trl(partial(brief), conversational=False), generated(["hi"], [[]], prompt=[own]))


def test_token_ids_are_there_in_a_run_only() -> None:
    def by_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    with pytest.raises(RunError, match="'by_ids' takes completion_ids, and there is no tokenizer outside a run"):
        from_trl(by_ids)(*BATCH)
    with scoring(tokenize=lambda texts: [t.split() for t in texts]):  # type: ignore[misc]
        assert scored(from_trl(by_ids)) == 2


def test_arrays_tensors_and_plain_numbers_are_rewards() -> None:
    import numpy as np
    import torch

    for values in (np.array([1.0, 2, 3]), torch.tensor([1, 2, 3]), [torch.tensor(1.0), np.float32(2), 3], (1, 2, 3)):
        assert scored(from_trl(lambda completions, values=values, **kwargs: values)) == 2


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([right, brief], [1.0], "2 reward functions have 1 weights"),
        ([], None, "takes a reward function or several"),
        (["right"], None, "takes a reward function or several"),
    ],
)
def test_wrong_lists_are_refused(functions: Any, weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_trl(functions, weights=weights)


# By name

FILE = """
def right(completions, answer, **kwargs):
    return [None if a == "x" else float(a in c) for a, c in zip(answer, completions)]

def brief(completions, factor=1.0, **kwargs):
    return [-factor * len(c) for c in completions]

def ends(completions, **kwargs):
    return [float(c[0]["content"].endswith("f")) for c in completions]

def get_limit(most):
    def limit(completions, **kwargs):
        return [float(len(c) <= most) for c in completions]
    return limit

class Limit:
    def __init__(self, most):
        self.most = most
    def __call__(self, completions, **kwargs):
        return [float(len(c) <= self.most) for c in completions]
"""


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("rewards.py:right", lambda: from_trl(right)),
        ("trl:rewards.py:right", lambda: from_trl(right)),
        ("trl:rewards.right", lambda: from_trl(right)),
        ("trl:rewards.py:brief?factor=2", lambda: from_trl(lambda completions: [-2 * len(c) for c in completions])),
        ("rewards.py:ends?format=conversational", lambda: from_trl(ends, conversational=True)),
        ("trl:rewards.py:ends?format=conversational", lambda: from_trl(ends, conversational=True)),
        ("trl:rewards.py:right,rewards.py:brief?weights=1,0.5", lambda: from_trl([right, brief], weights=[1, 0.5])),
        ("trl:rewards.py:brief?weights=0.5", lambda: from_trl([brief], weights=[0.5])),
        ("trl:rewards.py:get_limit?most=3", lambda: from_trl(lambda completions: [len(c) <= 3 for c in completions])),
        ("rewards.py:get_limit?most=3", lambda: from_trl(lambda completions: [len(c) <= 3 for c in completions])),
        ("rewards.py:Limit?most=3", lambda: from_trl(lambda completions: [len(c) <= 3 for c in completions])),
    ],
)
def test_a_name_gives_the_same_score_as_the_object(name: str, same: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "rewards.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    assert scored(resolve(name, tmp_path)) == scored(same())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trl:rewards.py:ends?format=chat", "format='chat'"),
        ("trl:rewards.py:get_limit", "making one of \\(\\) failed: TypeError"),
        ("trl:rewards.py:FILE", "Unknown function in rewards.py 'FILE'"),
        ("trl:json.dumps", "is no reward function"),
    ],
)
def test_wrong_names_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(FILE)
    with pytest.raises(InputError, match=message):
        resolve(name, tmp_path)


# TRL's own, as trl 1.16 has them (trl/rewards/other_rewards.py, format_rewards.py)


class _SoftOverlongPunishment:
    __name__ = "soft_overlong_punishment_reward"
    __module__ = "trl.rewards.other_rewards"

    def __call__(self, completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [0.0 if len(ids) <= 2 else -1.0 for ids in completion_ids]


def think_format_reward(completions: list[Messages], **kwargs: Any) -> list[float]:
    return [1.0 if completion[0]["content"].startswith("<think>") else 0.0 for completion in completions]


def test_trls_own_read_messages_and_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("trl.rewards.format_rewards")
    monkeypatch.setitem(__import__("sys").modules, "trl.rewards.format_rewards", module)
    monkeypatch.setattr(think_format_reward, "__module__", "trl.rewards.format_rewards")
    vars(module)["think_format_reward"] = think_format_reward
    batch = generated(["<think>x</think>", "no"], [[], []])
    assert scored(resolve("trl:trl.rewards.format_rewards:think_format_reward"), batch) == 0.5
    assert scored(from_callable(think_format_reward), batch) == 0.5
    with scoring(tokenize=lambda texts: [list(range(len(t.split()))) for t in texts]):
        assert scored(from_trl(_SoftOverlongPunishment())) == pytest.approx(-1 / 3)
        assert from_trl(_SoftOverlongPunishment()).name == "soft_overlong_punishment_reward"


def test_options_are_completions_too() -> None:
    assert from_trl(lambda completions: [c == " option 1" for c in completions])(*labelled([0, 0], [1, 0], 2)) == 0.5
