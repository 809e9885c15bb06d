"""The arithmetic of a page: means and spreads over seeds, gains over zero-shot, tasks x methods, ranks, costs."""

from collections.abc import Mapping, Sequence

import pandas as pd

from zo_objectives.families import rank
from zo_objectives.sources import COSTS


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """One row a task, model, method, split and metric, methods in their usual order.

    `mean` and `std` (ddof 1, NaN with one seed) of the value over `seeds` runs with a number, out of `runs`; `gain`
    is the mean less zero-shot's (NaN without one); `n` and the costs of training are means over the runs.
    """
    groups = results.groupby(["task", "model", "method", "split", "metric"], sort=False)
    values = groups["value"].agg(mean="mean", std="std", seeds="count", runs="size")
    table: pd.DataFrame = values.join(groups[["n", *COSTS]].mean()).reset_index()
    where = ["task", "model", "split", "metric"]
    untuned = table[table["method"] == "zero-shot"].set_index(where)["mean"]
    table.insert(7, "gain", table["mean"] - untuned.reindex(pd.MultiIndex.from_frame(table[where])).to_numpy())
    pairs = list(dict.fromkeys(zip(table["task"], table["model"], strict=True)))
    cells = table[["task", "model", "method", "split"]].itertuples(index=False, name=None)
    places = [(pairs.index((task, model)), rank(name), split != "validation") for task, model, name, split in cells]
    return table.take(sorted(range(len(table)), key=places.__getitem__)).reset_index(drop=True)


def pivot(results: pd.DataFrame, metrics: Mapping[str, str] | None = None) -> pd.DataFrame:
    """One row a task and model: `metric`, `split`, and for every method the mean of that metric over seeds.

    The metric is the one `metrics` names for the task, else the task's first; the split is test where a task has it.
    Methods are in their usual order; NaN where a task lacks one.
    """
    rows, task = summary(results), ["task", "model"]
    methods = sorted(set(rows["method"]), key=rank)
    chosen = results.groupby("task", sort=False)["metric"].first().to_dict() | dict(metrics or {})
    rows = rows[rows["metric"] == rows["task"].map(chosen)]
    tested = rows.groupby(task)["split"].transform(lambda splits: splits.eq("test").any())
    rows = rows[(rows["split"] == "test") | ~tested.astype("bool")]
    wide = rows.pivot(index=task, columns="method", values="mean").reindex(columns=methods)
    table = rows.drop_duplicates(task).set_index(task)[["metric", "split"]]
    return table.join(wide).rename_axis(columns="method")


def standing(table: pd.DataFrame, directions: Sequence[int]) -> dict[str, pd.Series]:
    """Of a pivot with several rows, for every method that each row has: its mean rank, 1 the highest, ties sharing
    theirs; and its mean, where the rows have one metric. A direction of -1 means that lower is better."""
    scores = table.drop(columns=["metric", "split"]).dropna(axis="columns")
    if len(scores) < 2 or len(scores.columns) < 2:
        return {}
    ranks = scores.mul(pd.Series(directions, scores.index), axis="index").round(3).rank(axis="columns", ascending=False)
    alike = table["metric"].nunique() == 1 and table["split"].nunique() == 1
    return ({"mean": scores.mean()} if alike else {}) | {"mean rank": ranks.mean()}


def forwards_of(results: pd.DataFrame, methods: Sequence[str]) -> dict[tuple[float, float], list[str]]:
    """The methods by the fewest and the most forward passes that a run of theirs took in training, cheap ones first."""
    spent = results.dropna(subset="forwards").groupby("method")["forwards"]
    fewest, most = spent.min().to_dict(), spent.max().to_dict()
    found = dict[tuple[float, float], list[str]]()
    for name in (name for name in methods if name in fewest):
        found.setdefault((fewest[name], most[name]), []).append(name)
    return dict(sorted(found.items()))
