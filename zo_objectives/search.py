"""From a configuration to what the loop needs: tuned weights, an estimator, an evaluation."""

from dataclasses import dataclass

from zo_objectives import hf, subsets
from zo_objectives.bench import Workbench
from zo_objectives.config import RunConfig
from zo_objectives.errors import unknown
from zo_objectives.estimators import Spsa, shaping
from zo_objectives.geometry import Dense, Geometry, Scaled
from zo_objectives.journal import Header
from zo_objectives.noise import SPEC, Law
from zo_objectives.results import versions
from zo_objectives.rules import make_rule
from zo_objectives.scoring import Evaluation, Pool, TailScorer, kind_for, scorer_for
from zo_objectives.subsets import Subset
from zo_objectives.weights import STORES, Weights


@dataclass(frozen=True)
class Search:
    """Everything the loop needs, built from a configuration."""

    weights: Weights
    estimator: Spsa
    evaluation: Evaluation
    subset: Subset


def build_weights(config: RunConfig, lm: hf.CausalLM, row_tokens: list[int]) -> tuple[Weights, Subset]:
    """The tuned weights as the configuration says, on a model at its base."""
    subset = subsets.select(lm, config.tune, row_tokens)
    if not config.relative:
        subset = subsets.with_all(subset)
    law = Law.RADEMACHER if config.noise == "rademacher" else Law.GAUSSIAN
    geometry: Geometry = Scaled(Dense(law), subset.gains)
    rule = make_rule(
        config.rule,
        learning_rate=config.learning_rate * (config.scale if config.shaping == "unit" else 1.0),
        schedule=config.schedule,
        steps=config.steps,
        weight_decay=config.weight_decay,
    )
    return Weights(lm.model, subset.names, geometry=geometry, rule=rule, store=config.store), subset


def build_search(bench: Workbench, pool: Pool, config: RunConfig) -> Search:
    """Weights, estimator and evaluation for a zeroth-order run."""
    if config.store not in STORES:
        raise unknown("weight store", config.store, STORES)
    estimator = Spsa(config.scale, config.directions, shaping(config.shaping))
    objective = bench.objective(config)
    kind_for(bench.spec, objective)
    weights, subset = build_weights(config, bench.lm, bench.row_tokens())
    scorer = scorer_for(pool, weights, subset, config.trunk_mb << 20, bench.sites)
    if isinstance(scorer, TailScorer):
        bench.sites = scorer.sites
    return Search(weights, estimator, Evaluation(scorer, objective), subset)


def header_of(config: RunConfig, search: Search, bench: Workbench) -> Header:
    """What a replay needs: the configuration, the base, the noise, the direction count, and who wrote it."""
    return {
        "config": config.model_dump(mode="json"),
        "seed": config.seed,
        "directions": config.directions,
        "noise": SPEC,
        "base": search.weights.fingerprint(),
        "row_tokens": bench.row_tokens() if "head" in config.tune.split("+") else [],
        "versions": versions(),
    }
