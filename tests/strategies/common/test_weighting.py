import numpy as np
import pytest
from flwr.app import MetricRecord
from helpers.replying import reply

from strategies import WeightedFedAvg
from strategies.common.weighting import WEIGHTINGS

METRICS = {"num-examples": 5, "loss": 0.5, "effective-number": 4.2}


@pytest.mark.parametrize(
    ("weighting", "weight"), [("examples", 5), ("uniform", 1), ("loss", 2.5), ("effective", 4.2)]
)
def test_the_weight_of_a_reply(weighting, weight):
    assert WEIGHTINGS[weighting](MetricRecord(METRICS)) == weight


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_average_has_those_weights(weighting):
    numbers = [{"num-examples": n, "loss": 1 / n, "effective-number": n / 2} for n in (1, 4, 9)]
    replies = [reply(k, more=more, w=np.float32(k)) for k, more in enumerate(numbers)]
    arrays, _ = WeightedFedAvg(weighting).aggregate_train(1, replies)
    weights = [WEIGHTINGS[weighting](MetricRecord(more)) for more in numbers]
    assert arrays["w"].numpy() == np.float32(np.average([0, 1, 2], weights=weights))
