"""The command line as a user meets it: exit codes, messages, files."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from zo_objectives.cli import main

ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
SMALL = ("n_train=32", "n_validation=16", "n_test=16", "batch=16", "directions=2")
TINY = [part for setting in SMALL for part in ("--set", setting)]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def process(*arguments: str) -> Done:
    command = [sys.executable, "-m", "zo_objectives", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


Cli = Callable[..., Done]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line in this process: starting another costs seconds."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["zo-objectives", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 1, *capsys.readouterr())

    return call


def test_listing_is_quick_and_says_what_there_is() -> None:
    process("tasks", "ls")  # files into the system's cache
    began = time.perf_counter()
    shown = process("tasks", "ls")
    assert time.perf_counter() - began < 5  # 0.5 s on a quiet machine
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("reviews", "sst2", "sums", "tidy"))


def test_show_and_objectives(cli: Cli) -> None:
    assert "doc_to_text" in cli("tasks", "show", "sst2").stdout
    assert "f1_macro" in cli("objectives", "ls").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "reviws"], "Unknown task 'reviws'. Did you mean 'reviews'?"),
        (["compare", "reviews", "--methods", "zo,mezoce"], "Unknown method 'mezoce'. Did you mean 'mezo-ce'?"),
        (["run", "reviews", "--set", "stepz=3"], "Unknown setting 'stepz'. Did you mean 'steps'?"),
        (["run", "reviews", "--steps", "1", "--objective", "acuracy"], "Did you mean 'accuracy'?"),
        (["run", "reviews", "--steps", "1", "--tune", "hed"], "Unknown subset to tune 'hed'. Did you mean 'head'?"),
        (["run", "sst2", "--data-dir", "nowhere"], "does not exist"),
        (["run", "reviews", "--model", "./nowhere"], "does not exist"),
        (["run", "reviews", "--budget", "3"], "less than one step"),
        (["report", "nowhere"], "nowhere"),
        (["run", "reviews", "--set", "seed=5"], "seed is no setting here: --seed or --seeds says it"),
        (["run", "reviews", "--set", "methods.zo.task=sums"], "task is no setting here"),
        (["compare", "reviews", "--set", "tasks.reviews.method=ft"], "method is no setting here"),
        (["run", "reviews", "--seed", "-1"], "Setting seed=-1: Input should be greater than or equal to 0"),
        (["compare", "reviews", "--seeds", "99999999999999999999"], "write 99999999999999999999, with the comma"),
        (["run", "reviews", "--budget", "40", "--steps", "3"], "say the same. Give one of them"),
        (["compare", "reviews", "--methods", "lp+ft+zo:foo"], "Unknown subset to tune 'foo'"),
        (["run", "reviews", "--method", "ft+zo:features:0"], "give features or features:K"),
        (["run", "reviews", "--objective", "mine.py"], "names no function: write mine.py:FUNCTION"),
        (["probe", "reviews", "--output", "no/such/folder/x.csv"], "there is no folder no/such/folder"),
    ],
)
def test_wrong_input_is_exit_code_2_and_one_sentence(
    cli: Cli, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_an_unknown_option_is_exit_code_2(cli: Cli) -> None:
    assert cli("run", "reviews", "--no-such-option").returncode == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = cli("run", "reviews", "--output", str(tmp_path / "x"))
    assert done.returncode == 2 and "Cannot write to" in done.stderr


def test_a_file_in_place_of_the_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    done = cli("run", "reviews", "--output", str(tmp_path / "x"))
    assert done.returncode == 2 and "Cannot write to" in done.stderr


def test_compare_writes_a_table_and_a_report_and_keeps_what_is_there(cli: Cli, tmp_path: Path) -> None:
    arguments = ["compare", "reviews", "--seeds", "2", "--budget", "8", "--quiet", "--output", str(tmp_path / "c"), *TINY]
    arguments += ["--set", "ft.steps=2", "--set", "ft.learning_rates=[1e-3]"]
    first = cli(*arguments)
    assert first.returncode == 0, first.stderr
    table = pd.read_csv(tmp_path / "c" / "results.csv")
    assert set(table["method"]) == {"zero-shot", "mezo-ce", "ft", "zo"}
    assert set(table["seed"]) == {0, 1}
    tuned = table[table["method"].isin(["zo", "mezo-ce"])]
    assert tuned["forwards"].eq(8).all()
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    assert "zo-objectives compare reviews" in page
    second = cli(*arguments)
    assert second.stdout.count("(was there)") == 8
    both = cli("report", str(tmp_path / "c"), "--output", str(tmp_path / "both.html"))
    assert both.returncode == 0 and (tmp_path / "both.html").stat().st_size > 5_000


def test_a_folder_that_gathers_runs_is_not_replayed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    done = cli("verify", str(tmp_path))
    assert done.returncode == 2 and "gathers runs. Name one of them" in " ".join(done.stderr.split())


def test_settings_of_a_method_that_is_not_run_are_told(cli: Cli, tmp_path: Path) -> None:
    given = ["--set", "methods.mezo-ce+zo.scale=3", "--set", "methods.zo.scale=1"]
    done = cli("run", "reviews", "--steps", "1", "--quiet", "--output", str(tmp_path / "r"), *TINY, *given)
    assert done.returncode == 0, done.stderr
    assert "Settings under methods.mezo-ce+zo are of none of the methods here." in done.stdout
    assert "methods.zo are" not in done.stdout


def test_run_then_verify_then_replay(cli: Cli, tmp_path: Path) -> None:
    run = cli("run", "reviews", "--steps", "2", "--quiet", "--output", str(tmp_path / "r"), *TINY)
    assert run.returncode == 0, run.stderr
    assert "Validation:" in run.stdout
    assert "bit for bit" in cli("verify", str(tmp_path / "r")).stdout
    made = cli("replay", str(tmp_path / "r"), "--step", "2", "--output", str(tmp_path / "m"))
    assert made.returncode == 0 and (tmp_path / "m" / "model.safetensors").exists()


def test_a_users_metric_from_a_file(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "def share(predictions, references):\n    return sum(predictions) / len(predictions)\n"
    (tmp_path / "mine.py").write_text(code)
    done = cli("run", "reviews", "--objective", "mine.py:share", "--steps", "1", "--quiet", *TINY)
    assert done.returncode == 0, done.stderr
    assert "share" in done.stdout


def test_validate_says_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    good = cli("tasks", "validate", "reviews")
    assert good.returncode == 0 and "no example is in two splits" in good.stdout
    (tmp_path / "t.yaml").write_text("task: t\ndoc_to_text: x\nmetric_lst: []\n")
    bad = cli("tasks", "validate", str(tmp_path / "t.yaml"))
    assert bad.returncode == 2 and "Did you mean 'metric_list'?" in bad.stderr


def test_ctrl_c_leaves_a_resumable_run(cli: Cli, tmp_path: Path) -> None:
    import signal

    slow = ["--tune", "norms", "--steps", "40"]  # whole forward passes, so that there is time to interrupt them
    arguments = ["run", "reviews", *slow, "--quiet", "--output", str(tmp_path / "r"), *TINY]
    command = [sys.executable, "-m", "zo_objectives", *arguments]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
    running = subprocess.Popen(command, env=ENV, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, ours)
    history = tmp_path / "r" / "history.csv"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (history.exists() and len(history.read_text().splitlines()) > 3):
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "Give the same command to go on" in said
    done = cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in cli("verify", str(tmp_path / "r")).stdout
