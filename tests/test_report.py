"""The report: its arithmetic against hand-computed numbers, its honesty, and the page as a file."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from zo_objectives.charts import Axis, Line, decimate, line_chart, spread, tick_labels
from zo_objectives.errors import InputError
from zo_objectives.families import ORDER, family
from zo_objectives.methods import METHODS, named
from zo_objectives.report import write_report
from zo_objectives.sources import merge_notes
from zo_objectives.standings import pivot, standing, summary

COLUMNS = (
    "task,model,method,objective,tune,seed,split,metric,value,n,forwards,examples,tokens,seconds,peak_memory_mb,"
    "parameters,best_step,run"
)
HISTORY = "step,forwards,examples,tokens,seconds,objective,tie_rate,validation\n"
VOID = {"meta", "br", "link", "img", "hr"}
SCORES = {  # test score of the headline metric, seeds 0, 1, 2
    "reviews": {
        "zero-shot": [0.6],
        "mezo-ce": [0.64, 0.66, 0.68],
        "ft": [0.80, 0.81, 0.82],
        "zo": [0.69, 0.71, 0.73],
    },
    "topics": {"zero-shot": [0.5], "mezo-ce": [0.51, 0.52, 0.53], "zo": [0.515, 0.525, 0.535]},
}
METRICS = {"reviews": "f1_macro", "topics": "exact_match"}
SHOWN = [
    {"prompt": "Is it <b>good</b>?", "target": "yes", "before": "no", "after": "<script>alert(1)</script>"},
    {"prompt": "\u2028" + "long " * 400 + "tail", "target": "yes", "before": "yes", "after": "no"},
]


def rows_of(scores: dict[str, dict[str, list[float]]]) -> pd.DataFrame:
    """A tidy results table: validation is test plus 0.01, accuracy a tenth above the headline metric."""
    rows = [
        [task, "tiny", method, METRICS[task] if method == "zo" else "", "full" if method != "zero-shot" else "", seed]
        + [split, metric, value + 0.01 * (split == "validation") + 0.1 * (metric == "accuracy"), 1234]
        + (
            [0, 0, 0, 0, 50, math.nan, math.nan]
            if method == "zero-shot"
            else [1000 + seed, 64000, 9876543, 12.5, 321, 7777, 20]
        )
        + [f"runs/{task}/{method}-seed{seed}"]
        for task, methods in scores.items()
        for method, values in methods.items()
        for seed, value in enumerate(values)
        for split in ("validation", "test")
        for metric in (METRICS[task], "accuracy")
    ]
    return pd.DataFrame(rows, columns=COLUMNS.split(","))


def write_run(folder: Path, steps: int = 20) -> None:
    """A history and predictions: one fixed and one broken."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        f"{t},{t * 25},{t},{t},{t},0.5,{'' if t == 0 else 0.25},{0.6 + t / 400 if t % 10 == 0 else ''}"
        for t in range(steps + 1)
    )
    (folder / "history.csv").write_text(HISTORY + "\n".join(lines) + "\n")
    rows = [
        row | {"split": "test", "id": i, "correct_before": i == 1, "correct_after": i == 0} for i, row in enumerate(SHOWN)
    ]
    rows.append(rows[0] | {"split": "validation", "prompt": "not of the test split"})
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_folder(folder: Path, scores: dict[str, dict[str, list[float]]] = SCORES) -> Path:
    """A comparison folder as `compare` leaves it."""
    results = rows_of(scores)
    folder.mkdir(parents=True)
    results.to_csv(folder / "results.csv", index=False)
    for run in results.loc[results["method"] != "zero-shot", "run"].unique():
        write_run(folder / run)
    tasks = {task: {"description": f"the {task}", "metric": METRICS[task], "higher_is_better": True} for task in scores}
    about = {
        "command": "zo-objectives compare --seeds 3",
        "created": "2026-01-02T03:04:05",
        "versions": {"torch": "9.9"},
    }
    about |= {"machine": "2 CPU cores", "tasks": tasks, "notes": ["topics: ft was skipped, it needs labels"]}
    (folder / "comparison.json").write_text(json.dumps(about))
    return folder


def page(tmp_path: Path, *folders: Path) -> str:
    """The report on some folders."""
    return write_report(folders, tmp_path / "report.html").read_text(encoding="utf-8")


def plain(html: str) -> str:
    """The text a reader sees, with single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.split("</style>")[1])).replace("&#39;", "'")


class Balance(HTMLParser):
    """Fails on a tag closed out of order; remembers attributes and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen += [(tag, name, value) for name, value in attrs]
        self.seen.append((tag, "", None))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else at {self.getpos()}"


def test_summary_is_mean_deviation_and_gain_by_hand() -> None:
    rows = summary(rows_of(SCORES)).to_dict("records")
    table = {(row["task"], row["method"], row["split"], row["metric"]): row for row in rows}
    zo = table["reviews", "zo", "test", "f1_macro"]
    assert zo["mean"] == pytest.approx(0.71) and zo["std"] == pytest.approx(0.02) and zo["seeds"] == 3
    assert zo["gain"] == pytest.approx(0.11) and zo["forwards"] == pytest.approx(1001)
    assert zo["tokens"] == 9876543 and zo["seconds"] == 12.5 and zo["peak_memory_mb"] == 321
    zero = table["topics", "zero-shot", "validation", "accuracy"]
    assert zero["mean"] == pytest.approx(0.61) and math.isnan(zero["std"]) and zero["gain"] == 0


def test_summary_orders_methods_and_knows_no_gain_without_zero_shot() -> None:
    results = rows_of({"reviews": {"other": [0.1], "zo": [0.3], "ft": [0.2]}})
    table = summary(results)
    assert list(dict.fromkeys(table["method"])) == ["ft", "zo", "other"]
    assert table["gain"].isna().all()


def test_summary_counts_seeds_that_have_a_number() -> None:
    table = summary(rows_of({"reviews": {"zo": [0.3, math.nan, 0.5]}}))
    assert set(table["seeds"]) == {2} and set(table["runs"]) == {3}


def test_page_is_balanced_self_contained_and_repeatable(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out")
    html = page(tmp_path, folder)
    parser = Balance()
    parser.feed(html)
    parser.close()
    tags = {tag for tag, _, _ in parser.seen}
    ids = [value for _, name, value in parser.seen if name == "id"]
    assert not parser.open and len(ids) == len(set(ids)) == 2
    assert not tags & {"script", "link", "img", "iframe"} and {"svg", "table", "polyline", "details"} <= tags
    assert not re.search(r"https?://|src=|@import|url\(", html)
    assert write_report([folder], tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()


def test_page_escapes_what_the_model_wrote(tmp_path: Path) -> None:
    html = page(tmp_path, write_folder(tmp_path / "out"))
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "<b>good" not in html


def test_headline_says_what_was_won_and_lost(tmp_path: Path) -> None:
    text = plain(page(tmp_path, write_folder(tmp_path / "out")))
    assert "Tuned on macro-F1 with forward passes only: 0.710 ± 0.020 on test, 3 seeds." in text
    assert "It beats zero-shot (0.600) by 0.110 and cross-entropy MeZO (0.660) by 0.050." in text
    assert "It loses to backprop fine-tuning (0.810) by 0.100." in text
    assert "The difference from cross-entropy MeZO (0.520, +0.005) is within the spread of the seeds." in text


def test_headline_admits_a_loss_to_zero_shot(tmp_path: Path) -> None:
    scores = {"reviews": {"zero-shot": [0.6], "zo": [0.50, 0.51, 0.52]}}
    text = plain(page(tmp_path, write_folder(tmp_path / "out", scores)))
    assert "It loses to zero-shot (0.600) by 0.090." in text and "beats" not in text and "\N{MINUS SIGN}0.090" in text
    assert re.search(r'class="best">0\.600', (tmp_path / "report.html").read_text())


def test_headline_turns_round_where_lower_is_better(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out", {"reviews": {"zero-shot": [0.6], "zo": [0.50, 0.51, 0.52]}})
    about = json.loads((folder / "comparison.json").read_text())
    about["tasks"]["reviews"]["higher_is_better"] = False
    (folder / "comparison.json").write_text(json.dumps(about))
    text = plain(page(tmp_path, folder))
    assert "It beats zero-shot (0.600) by 0.090." in text and "lower is better" in text
    assert len(re.findall(r'class="best">0\.510', (tmp_path / "report.html").read_text())) == 2


def test_one_seed_shows_no_spread_and_wins_and_loses_nothing(tmp_path: Path) -> None:
    scores = {"reviews": {"zero-shot": [0.6], "lp": [0.7], "ft": [0.75], "zo": [0.7]}}
    text = plain(page(tmp_path, write_folder(tmp_path / "out", scores)))
    assert "0.700 on test, 1 seed. One seed shows no spread, so this is neither won nor lost: " in text
    assert "ahead of zero-shot (0.600) by 0.100; behind backprop fine-tuning (0.750) by 0.050;" in text
    assert "; even with a linear probe (0.700)." in text and "nan" not in text.lower() and "beats" not in text


def test_a_rival_with_one_seed_is_not_beaten_unless_seeds_mean_nothing_to_it(tmp_path: Path) -> None:
    scores = {"reviews": {"zero-shot": [0.6], "calibrated": [0.62], "icl": [0.61], "zo": [0.69, 0.71, 0.73]}}
    text = plain(page(tmp_path, write_folder(tmp_path / "out", scores)))
    assert "It beats zero-shot (0.600) by 0.110 and calibrated zero-shot (0.620) by 0.090." in text
    assert "neither won nor lost: ahead of in-context learning (0.610) by 0.100." in text


def test_missing_method_is_a_dash_with_its_note(tmp_path: Path) -> None:
    html = page(tmp_path, write_folder(tmp_path / "out"))
    reviews, topics = (html.split(f'id="task-{number}"')[1].split("<section")[0] for number in (1, 2))
    assert re.search(r"ft</th>(<td class=\"none[^>]*>—</td>){11}</tr>", topics)
    assert "ft was skipped" in topics and "ft was skipped" not in reviews and "—</td><td" not in reviews


def test_table_holds_costs_and_other_metrics(tmp_path: Path) -> None:
    text = plain(page(tmp_path, write_folder(tmp_path / "out")))
    assert "9,876,543" in text and "64,000" in text and "0.810 ± 0.020" in text and "1,234 test examples" in text
    assert "seed 2: 0.730" in text and "zo-objectives compare --seeds 3" in text and "torch 9.9" in text


def test_predictions_count_and_keep_the_whole_prompt(tmp_path: Path) -> None:
    html = page(tmp_path, write_folder(tmp_path / "out"))
    text = plain(html)
    assert "Of 2 test examples: 1 fixed, 1 broken." in text and "long " * 400 + "tail" in html
    assert "not of the test split" not in html
    assert 'class="chip fixed"' in html and 'class="chip broken"' in html and 'class="chip right"' not in html


def test_predictions_without_correctness_go_by_score(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out")
    for path in folder.glob("runs/*/zo-seed0/predictions.jsonl"):
        scored = {
            "split": "test",
            "correct_before": None,
            "correct_after": None,
            "score_before": 0.5,
            "score_after": 0.2,
        }
        path.write_text(json.dumps(SHOWN[0] | scored) + "\n" + json.dumps(SHOWN[1] | {"split": "test"}) + "\n")
    assert "Of 2 test examples: 1 worse, 1 changed." in plain(page(tmp_path, folder))


def test_single_run_folder_needs_no_comparison(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder)
    rows_of({"reviews": {"zo": [0.7]}}).assign(run=".").to_csv(folder / "results.csv", index=False)
    (folder / "config.yaml").write_text("steps: 40 # <fast>\n")
    html = page(tmp_path, folder)
    assert "0.700 on test, 1 seed." in plain(html) and "steps: 40 # &lt;fast&gt;" in html and "<polyline" in html


def test_folders_merge_and_the_same_run_counts_once(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", {"reviews": SCORES["reviews"]})
    second = write_folder(tmp_path / "b", {"topics": SCORES["topics"]})
    text = plain(page(tmp_path, first, second, first))
    assert "2 tasks" in text and "0.710 ± 0.020 on test, 3 seeds." in text and " · " + str(first) not in text


def test_same_seed_with_another_outcome_is_another_variant(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", {"reviews": {"zero-shot": [0.6], "zo": [0.7]}})
    second = write_folder(tmp_path / "b", {"reviews": {"zero-shot": [0.6], "zo": [0.5]}})
    text = plain(page(tmp_path, first, second))
    assert "zo · a: tuned" in text and "zo · b: tuned" in text and "zero-shot · a" not in text
    assert text.count("ahead of zero-shot (0.600) by 0.100.") == text.count("behind zero-shot (0.600) by 0.100.") == 1


WIDE: dict[str, dict[str, list[float]]] = {  # two tasks, one metric, eleven methods
    "reviews": {
        "zo:prompt": [0.72, 0.74],
        "zo": [0.75, 0.77],
        "lp+zo": [0.6, 0.6],
        "zero-shot": [0.5],
        "calibrated": [0.5],
        "icl": [0.55, 0.57],
        "lp": [0.66, 0.68],
        "ft": [0.8, 0.82],
        "ft:lora": [0.78, 0.8],
        "ft:prefix": [0.7, 0.7],
        "mezo-ce": [0.6, 0.62],
    },
    "topics": {"zero-shot": [0.9], "ft": [0.6, 0.6], "zo": [0.7, 0.9], "ft:lora": [0.6, 0.6]},
}
USUAL = ["zero-shot", "calibrated", "icl", "lp", "ft", "ft:lora", "ft:prefix", "mezo-ce", "zo", "zo:prompt", "lp+zo"]


def test_methods_are_those_of_the_configuration_and_forms_belong_to_them() -> None:
    assert tuple(METHODS) == ORDER
    for label in (*USUAL, "zo:prompt:10", "lp+mezo-ce:norms+head", "ft:layers:1-2"):
        assert family(label) == family(f"{label} \u00b7 accuracy, a/b") == named(label)[0]


def test_pivot_is_the_mean_of_each_tasks_metric_by_hand() -> None:
    table = pivot(rows_of(WIDE))
    assert list(table.columns) == ["metric", "split", *USUAL]
    assert list(table.index) == [("reviews", "tiny"), ("topics", "tiny")] and set(table["split"]) == {"test"}
    assert list(table["metric"]) == ["f1_macro", "exact_match"]
    assert table.loc[("reviews", "tiny"), "zo"] == pytest.approx(0.76)
    assert table.loc[("topics", "tiny"), "zo"] == pytest.approx(0.8) and math.isnan(table.loc[("topics", "tiny"), "icl"])


def test_pivot_takes_the_named_metric_and_validation_without_a_test() -> None:
    rows = rows_of(SCORES)
    table = pivot(rows[(rows["task"] == "reviews") | (rows["split"] != "test")], {"reviews": "accuracy"})
    assert list(table["split"]) == ["test", "validation"] and list(table["metric"]) == ["accuracy", "exact_match"]
    assert list(table["zero-shot"]) == pytest.approx([0.7, 0.51])


def test_standing_ranks_what_every_task_has() -> None:
    rows = pivot(rows_of(WIDE))
    (ranks,) = standing(rows, [1, 1]).values()  # two metrics have no mean
    assert ranks.to_dict() == {"zero-shot": 2.5, "ft": 2.25, "ft:lora": 2.75, "zo": 2.5}
    turned = standing(rows.assign(metric="f1"), [1, -1])
    assert turned["mean rank"].to_dict() == {"zero-shot": 4, "ft": 1.25, "ft:lora": 1.75, "zo": 3}
    assert turned["mean"].to_dict() == pytest.approx({"zero-shot": 0.7, "ft": 0.705, "ft:lora": 0.695, "zo": 0.78})
    assert standing(rows.head(1), [1]) == {} == standing(rows[["metric", "split", "zo"]], [1, 1])


def test_overall_table_has_every_method_marks_the_best_and_tells_forwards(tmp_path: Path) -> None:
    html = page(tmp_path, write_folder(tmp_path / "out", WIDE))
    overall = html.split("<header>")[1].split("</header>")[0]
    heads = re.findall(r'<th scope="col">(.*?)</th>', overall)
    assert [re.sub("<.*?>", "", head) for head in heads] == ["Task", "Metric", "Seeds", *USUAL]
    groups = re.findall(r'colspan="(\d+)"><span>([\w -]+)', overall)
    assert groups == [("3", "no training"), ("1", "probing"), ("3", "backprop"), ("4", "zeroth-order")]
    assert re.findall(r'class="(best|ahead)">([\d.]+)', overall) == [
        ("best", "0.810"),
        ("ahead", "0.760"),
        ("best", "0.900"),
    ]
    assert overall.count("<small>1 seed</small>") == 3 and "1,000 to 1,001 for icl, lp, ft" in overall
    assert "none for zero-shot;" in overall and "mean rank" in plain("</style>" + overall)
    assert 'class="scroll"' in overall


def test_looks_tell_forms_apart_in_the_colour_of_their_method(tmp_path: Path) -> None:
    html = page(tmp_path, write_folder(tmp_path / "out", WIDE))
    keys = {name: style for style, name in re.findall(r'class="key (c[^"]*)"></span>([^<]+)', html)}
    assert set(keys) == set(USUAL) and len(set(keys.values())) == len(USUAL)
    assert [keys[name] for name in ("zo", "zo:prompt", "lp+zo", "ft:prefix")] == ["c0", "c0 v1", "c0 v2", "c2 v2"]


def test_a_probe_has_no_objective_and_variants_keep_theirs(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out", WIDE)
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    table.loc[table["method"].isin(["lp", "calibrated", "zo:prompt"]), ["objective", "tune"]] = ["cross_entropy", "probe"]
    table.to_csv(folder / "results.csv", index=False)
    html = page(tmp_path, folder)
    assert re.search(r"</span>lp</th>", html) and re.search(r"</span>calibrated</th>", html)
    assert "</span>zo:prompt<small>cross entropy, probe</small>" in html
    assert "lp+zo: tuned on" in html and "with forward passes only, from where linear probing ends:" in html


def test_notes_that_differ_in_the_seed_are_one() -> None:
    of_seeds = [f"sst2, icl, seed {seed}: 14.2 of 32 fit (9 to 17)." for seed in (13, 21, 42, 21)]
    others = ["sst2, icl, seed 13: another.", "copa: no lp+zo, since its options differ, seed or not.", "sst2, seed"]
    assert merge_notes([of_seeds[0], *others, *of_seeds[1:], others[1]]) == [
        "sst2, icl, seeds 13, 21, 42: 14.2 of 32 fit (9 to 17).",
        *others,
    ]


@pytest.mark.parametrize("count", [5, 6])
def test_many_notes_are_folded_and_stand_by_their_task(tmp_path: Path, count: int) -> None:
    folder = write_folder(tmp_path / "out")
    notes = [f"topics, icl, seed {seed}: {number} fit." for number in range(count - 1) for seed in (0, 1)]
    about = json.loads((folder / "comparison.json").read_text()) | {"notes": [*notes, "no ft:lora, since it is late."]}
    (folder / "comparison.json").write_text(json.dumps(about))
    html = page(tmp_path, folder)
    reviews, topics = (html.split(f'id="task-{number}"')[1].split("<section")[0] for number in (1, 2))
    assert "topics, icl, seeds 0, 1: 3 fit." in topics and "fit." not in reviews and "ft:lora" not in topics
    assert ("<details><summary>6 notes</summary>" in html.split("How it was made")[1]) == (count == 6)


def test_notes_of_a_single_run_are_told(tmp_path: Path) -> None:
    rows_of({"reviews": {"icl": [0.7]}}).assign(run=".").to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "notes.txt").write_text("0.0 of 32 <fit>.\n")
    assert page(tmp_path, tmp_path).count("<li>reviews, icl, seed 0: 0.0 of 32 &lt;fit&gt;.</li>") == 2


def typed_folder(folder: Path, dtypes: dict[str, str], scores: dict[str, dict[str, list[float]]] = SCORES) -> Path:
    """A comparison whose rows tell their dtype, by method."""
    table = pd.read_csv(write_folder(folder, scores) / "results.csv", keep_default_na=False)
    table.assign(dtype=table["method"].map(dtypes)).to_csv(folder / "results.csv", index=False)
    return folder


def test_dtype_is_told_with_the_costs_where_it_is_there(tmp_path: Path) -> None:
    names = ("zero-shot", "mezo-ce", "ft", "zo")
    assert "All in" not in (old := page(tmp_path, write_folder(tmp_path / "old"))) and ">dtype<" not in old
    same = page(tmp_path, typed_folder(tmp_path / "same", dict.fromkeys(names, "float32")))
    assert same.count("All in float32.") == 2 and ">dtype<" not in same
    mixed = page(tmp_path, typed_folder(tmp_path / "mixed", dict.fromkeys(names, "float32") | {"zo": "bfloat16"}))
    assert mixed.count(">dtype<") == 2 and mixed.count("<td>bfloat16</td>") == 2 and "All in" not in mixed
    assert re.search(r"ft</th>(<td class=\"none[^>]*>\u2014</td>){12}</tr>", mixed)


def test_dtypes_are_variants_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    scores = {"reviews": {"zo": [0.69, 0.71, 0.73]}}
    full = typed_folder(tmp_path / "full", {"zo": "float32"}, scores)
    old, half = write_folder(tmp_path / "old", scores), typed_folder(tmp_path / "half", {"zo": "bfloat16"}, scores)
    text = plain(page(tmp_path, old, full))
    assert "0.710 \u00b1 0.020 on test, 3 seeds." in text and "zo \u00b7" not in text
    text = plain(page(tmp_path, full, half))
    assert "zo \u00b7 bfloat16: tuned" in text and "zo \u00b7 float32: tuned" in text


def test_examples_are_called_the_same_only_where_they_are(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out")
    table = pd.read_csv(folder / "results.csv", keep_default_na=False)
    table.loc[(table["method"] == "zo") & (table["task"] == "reviews"), "n"] = 1200
    table.to_csv(folder / "results.csv", index=False)
    text = plain(page(tmp_path, folder))
    assert "measured on 1,200 to 1,234 test examples, not all methods on the same;" in text
    assert text.count("measured on the same 1,234 test examples;") == 1


def broken_folder(folder: Path, fault: str) -> Path:
    """A folder with one fault."""
    write_folder(folder, {"reviews": {"zo": [0.7]}})
    results = folder / "results.csv"
    table = pd.read_csv(results)
    run = folder / "runs/reviews/zo-seed0"
    faults: dict[str, Callable[[], object]] = {
        "no results": lambda: results.unlink(),
        "not a table": lambda: results.write_bytes(b"\xff\xfe\x00a,b\n\x80"),
        "no column": lambda: table.drop(columns=["value", "n"]).to_csv(results, index=False),
        "no number": lambda: table.astype({"value": "object"}).assign(value="high").to_csv(results, index=False),
        "no rows": lambda: table.head(0).to_csv(results, index=False),
        "bad json": lambda: (folder / "comparison.json").write_text("{"),
        "bad line": lambda: (run / "predictions.jsonl").write_text("[1]\n"),
        "bad history": lambda: (run / "history.csv").write_text("step\n1\n"),
    }
    faults[fault]()
    return folder


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no results", r"out holds no results\.csv\. Give the output folder"),
        ("not a table", r"Cannot read .*out.results\.csv: .* Repeat the run"),
        ("no column", r"out.results\.csv lacks the columns value, n\. Repeat the run"),
        ("no number", r"Cannot read .*out.results\.csv: .*high"),
        ("no rows", r"out.results\.csv has no rows.* Run it again"),
        ("bad json", r"Cannot read .*comparison\.json: .* Repair or delete it"),
        ("bad line", r"predictions\.jsonl holds '\[1\]' where an object should be\. Repair or delete it"),
        ("bad history", r"history\.csv lacks the columns forwards, tie_rate, validation\."),
    ],
)
def test_faulty_folder_is_named_with_the_cure(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        page(tmp_path, broken_folder(tmp_path / "out", fault))


def test_unwritable_output_and_no_folder_are_input_errors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "out")
    with pytest.raises(InputError, match=r"Cannot write the report to .*nowhere"):
        write_report([folder], tmp_path / "nowhere" / "report.html")
    with pytest.raises(InputError, match="at least one folder"):
        write_report([], tmp_path / "report.html")


def test_decimation_keeps_the_ends_and_drops_what_is_not_finite() -> None:
    kept = decimate([(float(i), math.nan if i == 5 else 1.0) for i in range(5000)])
    assert len(kept) == 400 and kept[0][0] == 0 and kept[-1][0] == 4999 and all(y == 1 for _, y in kept)
    assert decimate([(1.0, math.nan)]) == [] and decimate([(1.0, 2.0)]) == [(1.0, 2.0)]


def test_ticks_are_round_numbers_inside_the_axis() -> None:
    assert Axis(0.58, 0.83, 300, 0).ticks(5) == [0.6, 0.65, 0.7, 0.75, 0.8]
    assert Axis(50, 20000, 0, 100, log=True).ticks(5) == [0, 100, 1000, 10000]
    assert tick_labels([0.6, 0.65]) == ["0.60", "0.65"] and tick_labels([0, 500, 5000, 1.5e6]) == [
        "0",
        "500",
        "5k",
        "1.5M",
    ]
    assert Axis(10, 1000, 0, 100, log=True).at(100) == pytest.approx(50) and Axis(10, 1000, 5, 100, log=True).at(0) == 5


def test_labels_stay_apart_in_order_and_on_the_chart() -> None:
    placed = spread([100.0, 98.0, 99.0], 110.0)
    assert placed[1] < placed[2] < placed[0] <= 110 and placed[0] - placed[2] >= 15 and placed[2] - placed[1] >= 15


def test_chart_survives_a_constant_and_draws_nothing_from_nothing() -> None:
    flat = line_chart([Line("zo", "c0", [(0.0, 0.0), (9.0, 0.0)])], (300, 200), "x", "y")
    assert "polyline" in flat and "nan" not in flat
    assert line_chart([Line("zo", "c0", [(0.0, math.nan)])], (300, 200), "x", "y") == ""


def test_chart_keeps_many_and_long_labels_inside() -> None:
    lines = [Line(f"zo:pattern:{'x' * number}", "c0", [(0.0, 0.0), (9.0, 1.0)]) for number in range(30)]
    chart = line_chart(lines, (364, 300), "x", "y")
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', chart)[0])
    places = re.findall(r'class="label c0" x="([\d.]+)" y="([\d.]+)" dy="4" text-anchor="start">([^<]+)', chart)
    assert width == 364 and len(places) == 30 and len({y for _, y, _ in places}) == 30
    assert all(0 < float(y) < height and float(x) + 7.6 * len(text) <= width for x, y, text in places)
    assert places[-1][2].endswith("\u2026") and places[0][2] == "zo:pattern:"
