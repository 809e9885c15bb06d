"""Conformance suites: the laws of both sides, as functions that any implementation can be put through.

Each raises AssertionError where a law does not hold. Everything that this package lists goes through them in its own tests,
and so should an estimator, a geometry, an update rule, a weight store or an objective of your own:

    check_geometry(geometry)          noise is a pure function of key, tensor and element; E[z z^T] = I    (laws 1 and 2)
    check_estimator(estimator)        the mean estimate is the gradient; equal scores move nothing         (laws 2, 7 and 8)
    check_rule(rule)                  the same steps in pieces; no step from nothing                       (laws 4 and 7)
    check_store(weights_of)           leaving a probe restores every bit, whatever happened in it          (law 3)
    check_run(weights_of, estimator, folder)    live = replayed = killed and resumed, bit for bit          (law 4)
    check_members(weights, probes, rows, run)   together = one after another, up to the order of sums      (law 5)
    check_objective(objective)        equal outputs, equal scores; it looks at them; it changes nothing    (laws 7 and 8)

`Toy` is the model that stores and runs are tried on. The checks themselves are in zo_objectives.conformance.
"""

from zo_objectives.conformance.estimator_laws import check_estimator
from zo_objectives.conformance.geometry_laws import LEAVES, check_geometry, drawn
from zo_objectives.conformance.member_laws import BOUND, Run, check_members
from zo_objectives.conformance.objective_laws import check_objective, choice_batch, text_batch
from zo_objectives.conformance.rule_laws import check_rule, trajectory
from zo_objectives.conformance.run_laws import check_run, probing
from zo_objectives.conformance.store_laws import check_store
from zo_objectives.conformance.toy import CPU, DTYPES, IDS, Toy, WeightsOf, bits, score, tuned_names

__all__ = [
    "BOUND",
    "CPU",
    "DTYPES",
    "IDS",
    "LEAVES",
    "Run",
    "Toy",
    "WeightsOf",
    "bits",
    "check_estimator",
    "check_geometry",
    "check_members",
    "check_objective",
    "check_rule",
    "check_run",
    "check_store",
    "choice_batch",
    "drawn",
    "probing",
    "score",
    "text_batch",
    "trajectory",
    "tuned_names",
]
