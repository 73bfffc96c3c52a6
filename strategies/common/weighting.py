"""Weights of replies in an average. Each weighting is a function of a reply's metrics.

    examples    n_k
    uniform     1 if n_k > 0, else 0
    loss        n_k F_k, with F_k the training loss: clients with a large loss count more. These are
                the weights of q-fair federated learning for q = 1 (Li, Sanjabi, Beirami and Smith,
                "Fair resource allocation in federated learning", 2020, arXiv 1905.10497, section
                3.2)
    effective   Σ_c (1 − β^{n_kc}) / (1 − β) over the classes c: the effective number of examples
                (Cui, Jia, Lin, Song and Belongie, "Class-balanced loss based on effective number of
                samples", 2019, arXiv 1901.05555, section 3), which the client computes

n_k is the number of examples of client k, n_kc those of class c. The average divides the weights of
a round by their sum.
"""

from collections.abc import Callable, Mapping

from flwr.app import MetricRecord

Weighting = Callable[[MetricRecord], float]


def by_examples(metrics: MetricRecord) -> float:
    """Return the number of examples."""
    return _number(metrics, "num-examples")


def uniformly(metrics: MetricRecord) -> float:
    """Return 1, or 0 for a reply without examples."""
    return float(_number(metrics, "num-examples") > 0)


def by_loss(metrics: MetricRecord) -> float:
    """Return the number of examples times the training loss."""
    return _number(metrics, "num-examples") * _number(metrics, "loss")


def by_effective_number(metrics: MetricRecord) -> float:
    """Return the effective number of examples that the client reports."""
    return _number(metrics, "effective-number")


WEIGHTINGS: Mapping[str, Weighting] = {
    "examples": by_examples,
    "uniform": uniformly,
    "loss": by_loss,
    "effective": by_effective_number,
}


def _number(metrics: MetricRecord, key: str) -> float:
    value = metrics[key]
    assert isinstance(value, (int, float))
    return float(value)
