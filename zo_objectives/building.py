"""From a configuration to what the loop needs: tuned weights, an estimator, an evaluation, layer sizes."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zo_objectives import subsets
from zo_objectives.adapters import forms
from zo_objectives.batched import BatchedScorer
from zo_objectives.config import RunConfig
from zo_objectives.config_files import identity
from zo_objectives.draws import Signal
from zo_objectives.errors import InputError, unknown
from zo_objectives.features import put_features
from zo_objectives.language import hf
from zo_objectives.losses import cross_entropy
from zo_objectives.results import versions
from zo_objectives.scoring import Evaluation, ForwardScorer, Indices, Kind, Pool, Scorer, TailScorer, kind_for, scorer_for
from zo_objectives.search import adaptive
from zo_objectives.search.adaptive import Adaptive
from zo_objectives.search.estimators import Clipped, Es, Estimator, OnePoint, OneSided, RoundRobin, Several, Spsa, growing
from zo_objectives.search.geometry import Dense, Geometry, LowRank, Masked, Scaled, largest, smallest
from zo_objectives.search.journal import Header, header_for
from zo_objectives.search.keys import fold_in, root_key
from zo_objectives.search.layers import Layers, Modified, by_layer
from zo_objectives.search.noise import Law
from zo_objectives.search.pace import Paced
from zo_objectives.search.rules import make_rule
from zo_objectives.search.shaping import SLOPES, shaping
from zo_objectives.search.stores import STORES
from zo_objectives.search.weights import Weights
from zo_objectives.subsets import FEATURES, Subset
from zo_objectives.workbench import Workbench

PARTS = 16  # of a direction at most: more label rows share one, so that a step takes no more than so many times the scores


@dataclass(frozen=True)
class Search:
    """Everything the loop needs, built from a configuration."""

    weights: Weights
    estimator: Estimator
    evaluation: Evaluation
    subset: Subset
    adaptive: Adaptive | None


def search_seed(config: RunConfig) -> int:
    """What noise and batches follow from: the run's seed, and another for each zeroth-order run before it in its chain, so
    that none meets the draws that its start was made of."""
    earlier = sum(stage.climbs for stage in config.stages[:-1])
    return fold_in(root_key(config.seed), earlier) if earlier else config.seed


def batch_of(seed: int, size: int, train: Indices, t: int) -> Indices:
    """The training examples of step `t`: they depend on seed, size and step alone."""
    rng = np.random.default_rng([seed & 0xFFFFFFFF, t])
    return np.sort(rng.choice(train, min(size, len(train)), replace=False))


def build_geometry(config: RunConfig, lm: hf.LanguageModel, subset: Subset) -> Geometry:
    """Noise, mask and gains."""
    name, _, rank = config.noise.partition(":")
    inner: Geometry = LowRank(int(rank or 1)) if name == "low-rank" else Dense(Law[name.upper()])
    if config.mask is not None:
        kind, _, share = config.mask.partition(":")
        values = {n: p.data for n, p in lm.model.named_parameters() if n in subset.names}
        inner = Masked(inner, {"smallest": smallest, "largest": largest}[kind](values, float(share)))
    return Scaled(inner, subset.gains)


def build_layers(config: RunConfig, subset: Subset) -> Layers | None:
    """The groups of tensors, where something works group by group."""
    wanted = config.layerwise.sizes != "none" or config.blocks == "round-robin"
    return by_layer(subset.names, Modified(config.layerwise.modified)) if wanted else None


def build_weights(config: RunConfig, lm: hf.LanguageModel, row_tokens: list[int]) -> tuple[Weights, Subset]:
    """The tuned weights as the configuration says, on a model at its base."""
    subset = subsets.select(lm, config.tune, row_tokens)
    if not config.relative:
        subset = subsets.with_all(subset)
    rule = make_rule(
        config.rule,
        learning_rate=config.learning_rate * (1.0 if config.shaping in SLOPES else config.scale),
        schedule=config.schedule,
        steps=config.steps,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        pull=config.pull,
        moments=config.moments,
    )
    geometry, groups = build_geometry(config, lm, subset), build_layers(config, subset)
    return Weights(lm.model, subset.names, geometry=geometry, rule=rule, store=config.store, layers=groups), subset


def parts_of(config: RunConfig, scorer: Scorer, kind: Kind, rows: int) -> int:
    """Into how many parts of its `rows` label rows a direction is taken; 0: it stays whole.

    With rows=apart a pair of passes tells what each label row does by itself, since a logit is linear in its own row and
    in no other. That is so where options are scored and label rows are all that is tuned, along features; elsewhere each row
    would cost passes of its own, and directions stay whole.
    """
    alone = [form for form, _ in forms(config.tune)] == [FEATURES]
    told = isinstance(scorer, TailScorer) and kind is Kind.CHOICE and config.estimator == "spsa"
    return min(rows, PARTS) if config.rows == "apart" and alone and told else 0


def build_estimator(config: RunConfig, weights: Weights, train: int = 1, parts: int = 0) -> Estimator:
    """The estimator that the configuration names, for a climb over `train` examples, with directions in `parts`.

    Raises InputError for a shaping that cannot work with it.
    """
    first = 2 if config.estimator == "es" else 1
    n = config.directions if config.growth == "constant" else growing(config.directions, config.steps, first)
    shape = shaping(config.shaping)
    if config.estimator == "one_point" and config.shaping not in ("raw", "unit", "sign"):
        raise InputError(
            f"estimator=one_point has one score a step: shaping={config.shaping} cannot work. Use raw, unit or sign."
        )
    found: Estimator
    match config.estimator:
        case "spsa":
            found = Spsa(config.scale, n, shape, parts)
        case "one_sided":
            found = OneSided(config.scale, n, shape)
        case "one_point":
            found = OnePoint(config.scale, shape)
        case "es":
            found = Es(config.scale, n, shape)
    if config.pace == "ties" and isinstance(found, Several):
        found = Paced(found, max(0, math.ceil(math.log2(train / config.batch))))
    if config.clip is not None:
        found = Clipped(found, config.clip)
    return RoundRobin(found, weights.layers.count) if config.blocks == "round-robin" and weights.layers else found


def signal_of(config: RunConfig) -> Signal:
    """What of the objective is climbed."""
    return Signal(config.samples, config.temperature or None, config.pass_at)


def build_adaptive(config: RunConfig, bench: Workbench, pool: Pool) -> Adaptive | None:
    """When and how layer sizes are measured."""
    wanted = config.layerwise
    match wanted.sizes:
        case "none":
            return None
        case "parameter":
            source: adaptive.Source = adaptive.parameter_norms
        case "zeroth-order":
            source = adaptive.zeroth_order_norms(config.scale, wanted.directions)
        case "backprop":
            source = adaptive.backprop_norms(
                lambda t: cross_entropy(pool, batch_of(search_seed(config), config.batch, bench.train, t))
            )
    return Adaptive(source, wanted.every, wanted.average, wanted.floor)


def build_search(bench: Workbench, pool: Pool, config: RunConfig, folder: Path | None = None) -> Search:
    """Weights, estimator and evaluation for a zeroth-order run; what it needs beside its journal is kept in `folder`."""
    stores = {name for name in STORES if name != "in_place"}  # a run must replay
    if config.store not in stores:
        raise unknown("weight store", config.store, stores)
    objective = bench.objective(config)
    kind_for(bench.spec, objective)
    put_features(bench, pool, config.tune, folder)
    rows = bench.row_tokens()
    weights, subset = build_weights(config, pool.lm, rows)
    measured = build_adaptive(config, bench, pool)
    scorer = scorer_for(pool, weights, subset, config.trunk_mb << 20, bench.sites)
    if isinstance(scorer, TailScorer):
        bench.sites = scorer.sites
    elif isinstance(scorer, ForwardScorer) and config.members == "batched":
        scorer = BatchedScorer(pool, weights, scorer.trunk)
    evaluation = Evaluation(scorer, objective, config.steps, Signal() if config.method == "mezo-ce" else signal_of(config))
    parts = parts_of(config, scorer, evaluation.kind, len(rows))
    estimator = build_estimator(config, weights, len(bench.train), parts)
    return Search(weights, estimator, evaluation, subset, measured)


def header_of(config: RunConfig, search: Search, bench: Workbench) -> Header:
    """What a replay needs: the configuration, the base, the noise, what a step holds, and who wrote it."""
    return header_for(
        search.weights,
        search.estimator,
        search_seed(config),
        search.adaptive,
        config=identity(config),
        row_tokens=bench.row_tokens() if subsets.moves_rows(config.tune) else [],
        versions=versions(),
    )
