"""Metrics of other libraries, unchanged: Cohen's kappa of scikit-learn, climbed by its name and as an object.

A metric of `evaluate` is `zo.from_evaluate("./my/metric", "key")`, or `--objective evaluate:./my/metric#key`.
"""

from sklearn.metrics import cohen_kappa_score

import zo_objectives as zo

SMALL = {"steps": 5, "batch": 64, "n_validation": 60, "n_test": 60, "show": False}

if __name__ == "__main__":
    by_name = zo.tune("reviews", objective="sklearn:cohen_kappa_score", output="runs/kappa-by-name", **SMALL)
    by_object = zo.tune("reviews", objective=zo.from_sklearn(cohen_kappa_score), output="runs/kappa", **SMALL)
    print(by_name.results[["split", "metric", "value"]])
    assert list(by_name.results["value"]) == list(by_object.results["value"])
