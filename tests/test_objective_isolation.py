"""A user's function apart from the run: limits of time, processes, memory; every way to fail is a Failure, never a 0."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from objective_batches import generated, graded, sentences

from zo_objectives.errors import InputError, RunError
from zo_objectives.language import culprits, workers
from zo_objectives.language.objectives import (
    BUILTIN,
    Failure,
    Isolation,
    Objective,
    Scored,
    from_callable,
    from_trl,
    isolated,
    resolve,
    scoring,
)
from zo_objectives.language.outputs import Example, Generations, Outputs
from zo_objectives.testing import check_objective

FILE = '''
import os
import time
from dataclasses import dataclass

calls = []

def right(predictions, references):
    """Share of right ones."""
    return sum(p == r for p, r in zip(predictions, references)) / len(predictions)

def brief(completions, log_metric, log_extra, trainer_state, **kwargs):
    calls.append(list(completions))
    log_metric("step", trainer_state.global_step)
    log_extra("size", [len(c) for c in completions])
    return [-float(len(c)) if c else None for c in completions]

def ids(completion_ids, **kwargs):
    return [float(len(i)) for i in completion_ids]

def process(completions, **kwargs):
    return [float(os.getpid())] * len(completions)

def slow(completions, seconds=0.2, **kwargs):
    time.sleep(seconds)
    return [1.0] * len(completions)

def stuck(completions, **kwargs):
    while "two" in completions[0]:
        time.sleep(0.05)
    return [1.0] * len(completions)

def broken(completions, **kwargs):
    if any("two" in c for c in completions):
        raise KeyError("no twos")
    return [1.0] * len(completions)

class Strange(Exception):
    def __init__(self, a, b):
        super().__init__(a)

def strange(outputs, examples):
    raise Strange(1, 2)

def dead(completions, **kwargs):
    os._exit(7)

def loud(completions, **kwargs):
    print("printed by the function")
    return [1.0] * len(completions)

@dataclass
class Most:
    words: int
    def __call__(self, completions, **kwargs):
        return [float(len(c.split()) <= self.words) for c in completions]
'''
BATCH = generated(["one", "one two", "one two three"], [["one"], ["x"], ["y"]])


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "mine.py").write_text(FILE)
    yield lambda name: resolve(f"mine.py:{name}", tmp_path)
    resolve_cache_clear()


def resolve_cache_clear() -> None:
    """Lets the workers of a test go."""
    from zo_objectives.language import resolve as module

    module._kept.cache_clear()
    gc.collect()


# Limits of time


def test_one_that_takes_too_long_is_named_and_the_next_call_works(mine: Any) -> None:
    objective = mine("stuck?timeout=0.3")
    with pytest.raises(Failure, match=r"'stuck' took more than 0.3 s on a batch of 1 \(example 11: .*'one two'"):
        objective(Generations(["one two"]), BATCH[1][1:2])
    assert objective(Generations(["one"]), BATCH[1][:1]) == 1


def test_a_functions_own_timeout_is_its_own() -> None:
    def reward(completions: list[str]) -> list[float]:
        raise TimeoutError("the judge is asleep")

    with pytest.raises(Failure, match="raised TimeoutError: the judge is asleep"):
        isolated(from_callable(reward), Isolation(timeout=5))(*BATCH)


def test_within_its_limit_it_scores_the_same(mine: Any) -> None:
    with scoring(step=4):
        value = mine("brief?timeout=5")(*BATCH)
    assert value == mine("brief")(*BATCH) and value.parts == {"step": 4}
    with pytest.raises(Failure, match=r"'broken' raised KeyError: 'no twos' \(this one alone does it, example 11"):
        mine("broken?timeout=5")(*BATCH)


def test_ctrl_c_gets_through_a_limit(mine: Any) -> None:
    objective = mine("slow?timeout=30&seconds=20")
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            objective(*BATCH)
    finally:
        signal.signal(signal.SIGALRM, previous)


# Processes


@pytest.mark.parametrize("name", ["right", "brief", "Most?words=2", "loud"])
def test_workers_score_the_same(mine: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    apart = mine(f"{name}{'&' if '?' in name else '?'}workers=1")
    here, there = mine(name)(*BATCH), apart(*BATCH)
    assert here == there and here.parts == there.parts and here.columns == there.columns
    assert apart.name == mine(name).name and apart.about == mine(name).about


def test_workers_are_other_processes_and_see_the_step_and_the_tokens(mine: Any) -> None:
    objective = mine("process?workers=1")
    assert objective(*BATCH) not in (0, os.getpid()) and objective(*BATCH) == objective(*BATCH)
    with scoring(step=5, tokenize=lambda texts: [[0] * len(t.split()) for t in texts]):
        assert mine("ids?workers=1")(*BATCH) == 2
        assert mine("brief?workers=1")(*BATCH).parts == {"step": 5}


def test_scoring_and_the_next_forward_overlap(mine: Any) -> None:
    objective = mine("slow?workers=2&seconds=0.3")
    objective(*BATCH)  # starts them
    objective.scores([BATCH[0]] * 2, BATCH[1])

    def forwards() -> Iterator[Outputs]:
        for _ in range(4):
            time.sleep(0.15)
            yield BATCH[0]

    start = time.perf_counter()
    assert objective.scores(forwards(), BATCH[1]) == [1.0] * 4
    assert time.perf_counter() - start < 1.5, "one after another it takes 1.8 s"


def test_a_stuck_process_is_killed_and_replaced(mine: Any) -> None:
    objective = mine("stuck?workers=1&timeout=0.5")
    with pytest.raises(Failure, match=r"'stuck' took more than 0.5 s"):
        objective(Generations(["one two"]), BATCH[1][1:2])
    assert objective(Generations(["one"]), BATCH[1][:1]) == 1


def test_a_process_that_dies_is_named_and_the_next_call_has_another(mine: Any) -> None:
    objective = mine("dead?workers=1")
    for _ in range(2):
        with pytest.raises(Failure, match=r"'dead': its worker process ended, code 7 \(example 10"):
            objective(*BATCH)


def test_what_a_function_raises_comes_back_by_name(mine: Any) -> None:
    with pytest.raises(Failure, match=r"'broken' raised KeyError: 'no twos' \(this one alone does it, example 11") as caught:
        mine("broken?workers=1")(*BATCH)
    assert (caught.value.objective, caught.value.example) == ("broken", 11)
    with pytest.raises(Failure, match=r"'strange' raised Strange: 1"):
        mine("strange?workers=1")(*BATCH)
    with pytest.raises(InputError, match="takes no such"):
        isolated(Objective("o", refuse), Isolation(workers=1))(*BATCH)


def refuse(outputs: Outputs, examples: Any) -> float:
    raise InputError("takes no such thing")


def share_of_ones(predictions: list[str], references: list[str]) -> float:
    return sum("one" in p for p in predictions) / len(predictions)


def test_functions_of_modules_can_be_sent_and_lambdas_are_refused() -> None:
    assert isolated(from_callable(share_of_ones), Isolation(workers=1))(*BATCH) == 1
    assert isolated(BUILTIN["squad_f1"], Isolation(workers=1))(*sentences()) == BUILTIN["squad_f1"](*sentences())
    with pytest.raises(InputError, match=r"cannot be sent to worker processes .*put the function at the top of a module"):
        isolated(from_callable(lambda predictions, references: 0.5), Isolation(workers=1))


def test_functions_of_the_script_itself_are_refused(tmp_path: Path) -> None:
    code = (
        "from zo_objectives.language.objectives import *\n"
        "def f(predictions, references): return 0.5\n"
        "try: isolated(from_callable(f), Isolation(workers=1))\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "'f' cannot be sent to worker processes (it is in the script that was started" in done.stdout, done.stderr


def test_what_cannot_be_made_in_a_process_says_so() -> None:
    class Fragile:
        def __call__(self, predictions: list[str], references: list[str]) -> float:
            return 0.5

        def __reduce__(self) -> Any:
            return int, ("not a number",)

    with pytest.raises(Failure, match="'Fragile' could not be made in a worker process: ValueError"):
        isolated(from_callable(Fragile()), Isolation(workers=1))(*BATCH)


def test_a_search_for_the_example_that_fails_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprits, "SEARCH", 0.0)

    def slow(predictions: list[str], references: list[str]) -> float:
        time.sleep(0.01)
        raise KeyError("down")

    with pytest.raises(Failure, match=r"'slow' raised KeyError: 'down' \(example 10"):
        from_callable(slow)(*BATCH)


def test_parts_of_a_composite_may_be_elsewhere(mine: Any, tmp_path: Path) -> None:
    name = "exact_match + mine.py:brief?workers=1"
    objective = resolve(name, tmp_path)
    value = objective(*BATCH)
    assert value == BUILTIN["exact_match"](*BATCH) + mine("brief")(*BATCH)
    assert isinstance(value, Scored) and set(value.parts) == {"exact_match", "brief", "brief/step"}
    assert objective.scores([BATCH[0]] * 3, BATCH[1]) == [value] * 3
    assert objective.start is not None


def test_processes_end_with_their_objective(mine: Any) -> None:
    objective = mine("right?workers=2")
    objective.scores([BATCH[0]] * 4, BATCH[1])
    processes = [p for p in workers.LIVING if p.name == "right"]
    assert processes
    del objective
    resolve_cache_clear()
    deadline = time.monotonic() + 5
    while any(p.process.poll() is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(p.process.poll() is not None for p in processes)


def test_a_killed_run_leaves_no_process(mine: Any, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from objective_batches import generated;"
        "from pathlib import Path; from zo_objectives.language.objectives import resolve;"
        "print(int(resolve('mine.py:process?workers=1', Path(sys.argv[2]))(*generated(['a'], [[]]))), flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, tests, str(tmp_path)], capture_output=True, text=True)
    child = int(done.stdout)
    deadline = time.monotonic() + 5
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").exists() and Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


# Memory


def counted(function: Any) -> tuple[Any, list[list[str]]]:
    asked: list[list[str]] = []

    def reward(completions: list[str], n: list[int], **kwargs: Any) -> list[float | None]:
        asked.append(list(completions))
        found: list[float | None] = [function(c) for c in completions]
        return found

    return reward, asked


def test_a_pure_reward_is_asked_once_for_each_pair() -> None:
    reward, asked = counted(lambda text: float(len(text)) if text else None)
    objective = isolated(from_callable(reward), Isolation(pure=True))
    _, examples = generated([""] * 3, [[]] * 3)
    assert objective(Generations(["a", "bb", ""]), examples) == 1.5
    assert objective(Generations(["a", "ccc", ""]), examples) == 2
    assert objective(Generations(["a", "bb", ""]), examples) == 1.5
    assert objective(Generations(["bb", "a", ""]), examples) == 1.5, "another example's text is another pair"
    assert asked == [["a", "bb", ""], ["ccc"], ["bb", "a"]]
    same = [examples[0]] * 3
    assert objective(Generations(["q", "q", "q"]), same) == 1 and asked[-1] == ["q"], "in one batch too"
    copies = [Example(e.id, e.prompt, e.row) for e in examples]
    assert objective(Generations(["a", "bb", ""]), copies) == 1.5 and len(asked) == 5, "an example is itself, not its number"


def test_a_pure_metric_is_asked_once_for_each_batch() -> None:
    asked: list[Any] = []

    def metric(outputs: Outputs, examples: Any) -> float:
        asked.append(outputs)
        return float(len(asked))

    objective = isolated(from_callable(metric), Isolation(pure=True))
    (outputs, examples), (other, _) = graded(0), graded(1)
    assert [objective(o, examples) for o in (outputs, other, outputs, other)] == [1, 2, 1, 2]
    assert objective(outputs, examples[:-1]) == 3 and len(asked) == 3


def test_what_is_logged_for_samples_is_remembered(mine: Any) -> None:
    objective = mine("brief?pure=true")
    first, again = objective(*BATCH), objective(*BATCH)
    assert first == again and first.columns == again.columns == {"size": [3, 7, 13]}
    joined = isolated(from_trl([share, lengths]), Isolation(pure=True))
    first, again = joined(*BATCH), joined(*BATCH)
    assert isinstance(first, Scored) and isinstance(again, Scored)
    assert first.parts == again.parts == {"share": 1, "lengths": pytest.approx(23 / 3)}


def share(completions: list[str]) -> list[float]:
    return [1.0 for _ in completions]


def lengths(completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def test_a_failure_is_not_remembered() -> None:
    fails = [True]

    def reward(completions: list[str]) -> list[float]:
        if fails[0]:
            raise KeyError("x")
        return [1.0] * len(completions)

    objective = isolated(from_callable(reward), Isolation(pure=True))
    with pytest.raises(Failure):
        objective(*BATCH)
    fails[0] = False
    assert objective(*BATCH) == 1


@pytest.mark.parametrize("name", ["brief?pure=true&workers=1", "right?pure=true&workers=1", "brief?pure=true&timeout=5"])
def test_memory_and_processes_together(mine: Any, name: str) -> None:
    objective, plain = mine(name), mine(name.split("?")[0])
    others = [BATCH[0], Generations(["one", "x", "one two three"]), BATCH[0]]
    assert objective.scores(others, BATCH[1]) == plain.scores(others, BATCH[1])
    assert objective(*BATCH) == plain(*BATCH)
    check_objective(objective)


@pytest.mark.parametrize("name", ["right?workers=1", "brief?timeout=5", "brief?pure=true"])
def test_kept_apart_it_keeps_the_laws(mine: Any, name: str) -> None:
    check_objective(mine(name))


@pytest.mark.parametrize(
    "arguments", ["timeout=0", "timeout=long", "timeout=true", "workers=-1", "workers=1.5", "workers=true", "pure=1"]
)
def test_wrong_settings_are_refused(mine: Any, arguments: str) -> None:
    with pytest.raises(InputError, match=arguments.split("=")[0]):
        mine(f"right?{arguments}")


def test_a_failure_is_a_failed_run() -> None:
    assert issubclass(Failure, RunError)
