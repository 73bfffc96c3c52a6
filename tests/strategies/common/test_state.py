"""The state of a rule, under the names that checkpoints have."""

import numpy as np
import pytest
from helpers.replying import after_round, random_arrays, reply

from strategies import FedAdagrad, FedAdam, FedAvgM, FedMedian, FedSGD, FedYogi, WeightedFedAvg
from strategies.common.state import load_state, state_of

MOMENTS = {"m_t/w", "m_t/b", "m_t/s", "v_t/w", "v_t/b", "v_t/s"}
NAMES = {
    FedAvgM: {"momentum_vector/0", "momentum_vector/1", "momentum_vector/2"},
    FedSGD: {"velocity/w", "velocity/b", "velocity/s"},
    FedAdagrad: MOMENTS,
    FedAdam: MOMENTS,
    FedYogi: MOMENTS,
}


def make(kind):
    return kind(server_momentum=0.9) if kind in (FedAvgM, FedSGD) else kind()


def after_one_round(kind):
    rule = make(kind)
    after_round(rule, random_arrays(0), [reply(k, **random_arrays(k + 1)) for k in range(3)])
    return rule


@pytest.mark.parametrize("kind", NAMES)
def test_checkpoints_keep_their_names(kind):
    assert set(state_of(after_one_round(kind))) == NAMES[kind]


@pytest.mark.parametrize("kind", NAMES)
def test_a_state_that_is_loaded_is_given_again(kind):
    state = state_of(after_one_round(kind))
    other = make(kind)
    load_state(other, state)
    again = state_of(other)
    assert again.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("kind", [*NAMES, WeightedFedAvg, FedMedian])
def test_there_is_no_state_before_the_first_round(kind):
    rule = make(kind)
    assert state_of(rule) == {}
    load_state(rule, {})
    assert state_of(rule) == {}


@pytest.mark.parametrize("kind", [WeightedFedAvg, FedMedian])
def test_a_rule_without_state_loads_nothing(kind):
    rule = after_one_round(kind)
    load_state(rule, {"m_t/w": np.ones(2)})
    assert state_of(rule) == {}


def test_momentum_stays_in_order_for_more_than_ten_arrays():
    arrays = {f"p{k}": np.full(1, k, np.float32) for k in range(12)}
    rule = FedAvgM(server_momentum=0.9)
    after_round(rule, arrays, [reply(k, **{n: 2 * a for n, a in arrays.items()}) for k in (0, 1)])
    other = FedAvgM(server_momentum=0.9)
    load_state(other, dict(reversed(state_of(rule).items())))
    assert [float(array[0]) for array in other.momentum_vector] == [-k for k in range(12)]
