"""Client-level DP inside `AttentionOnly`: what it releases, and the ε that this costs."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import PrivacyBudgetExhausted
from flwr.serverapp.strategy import FedAvg
from helpers.replying import failed_reply
from scipy.stats import chi2

from fedattn_app.engine.local_grid import LocalGrid
from strategies import AttentionOnly, ClientLevelDP

CLIENTS = 4
CLIPPING_NORM = 2.0
DELTA = 1e-5
NEGLIGIBLE_NOISE = 1e-6
# Rounding of float32 near 1, and the norm that an update of 0 gets.
ABSOLUTE_TOLERANCE = 3e-6


def start():
    """Return the global arrays: one of them is zero, the last is not shared."""
    rng = np.random.default_rng(0)
    return {
        "attention.weight": rng.normal(size=(5, 3)).astype(np.float32),
        "attention.bias": np.zeros(4, np.float32),
        "embedding.weight": rng.normal(size=(7, 3)).astype(np.float32),
    }


def is_shared(name):
    return name.startswith("attention.")


def shared(arrays):
    return {name: array for name, array in arrays.items() if is_shared(name)}


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def update_of(node, norm):
    """Return an update of the shared arrays with this L2 norm."""
    rng = np.random.default_rng(100 + node)
    raw = {name: rng.normal(size=array.shape) for name, array in shared(start()).items()}
    length = np.sqrt(sum(np.sum(array**2) for array in raw.values()))
    return {name: array * norm / length for name, array in raw.items()}


def moved_by(update):
    arrays = shared(start())
    return {name: arrays[name] + update[name].astype(np.float32) for name in arrays}


def reply_from(node, arrays, num_examples=10):
    metrics = MetricRecord({"num-examples": num_examples, "loss": float(node)})
    content = RecordDict({"arrays": record(arrays), "metrics": metrics})
    return Message(content, reply_to=Message(RecordDict(), node, "train"))


def answers(norms=(0.5, 1.9, 2.1, 300.0), sizes=(10,) * CLIENTS):
    """Return a valid reply from each node of the grid."""
    return [
        reply_from(node, moved_by(update_of(node, norm)), size)
        for node, norm, size in zip(grid().get_node_ids(), norms, sizes, strict=True)
    ]


def grid():
    return LocalGrid(ClientApp(), CLIENTS, {})


def make(noise=NEGLIGIBLE_NOISE, seed: int | None = 1, max_epsilon=None):
    protected = ClientLevelDP(FedAvg(), noise, CLIPPING_NORM, DELTA, max_epsilon, seed)
    return AttentionOnly(protected, is_shared, needs_no_replies=True)


def run_round(strategy, replies, server_round=1, before=None):
    """Run a round with all clients; return the new arrays by name, and the metrics."""
    before = record(start() if before is None else before)
    sent = list(strategy.configure_train(server_round, before, ConfigRecord(), grid()))
    assert len(sent) == CLIENTS
    merged, metrics = strategy.aggregate_train(server_round, replies)
    return merged and {name: array.numpy() for name, array in merged.items()}, metrics


def change(strategy, replies, server_round=1):
    """Run a round; return what it adds to the shared arrays, as one vector."""
    after, _ = run_round(strategy, replies, server_round)
    return np.concatenate([(after[name] - old).ravel() for name, old in shared(start()).items()])


def mean_of_clipped(norms):
    """Return the release without noise, by the formula; a norm of 0 is an update of 0."""
    total = 0.0
    for node, norm in zip(grid().get_node_ids(), norms, strict=True):
        if norm:
            update = np.concatenate([array.ravel() for array in update_of(node, norm).values()])
            total = total + update * min(1, CLIPPING_NORM / norm)
    return total / CLIENTS


def spent(strategy):
    return strategy.inner.accountant.get_privacy_spent()


def test_releases_the_mean_of_the_clipped_updates():
    norms = (0.5, 1.9, 2.1, 300.0)
    np.testing.assert_allclose(
        change(make(), answers(norms)), mean_of_clipped(norms), atol=ABSOLUTE_TOLERANCE
    )


def test_only_the_shared_arrays_change_and_all_keep_their_form():
    after, _ = run_round(make(noise=1.0), answers())
    for name, before in start().items():
        assert after[name].dtype == before.dtype
        assert after[name].shape == before.shape
        assert (after[name].tobytes() == before.tobytes()) != is_shared(name)


def test_metrics_are_not_combined():
    _, metrics = run_round(make(), answers())
    assert not metrics or set(metrics) <= {"num-examples"}


def with_array(name, value):
    return lambda node: reply_from(node, {**shared(start()), name: value})


def with_bias(*values):
    return with_array("attention.bias", np.array(values, np.float32))


USELESS = {
    "a zero update": lambda node: reply_from(node, shared(start())),
    "denormals": with_bias(1e-44, 0, -1e-44, 1e-44),
    "an update whose squares underflow": with_bias(1e-30, 0, 0, 0),
    "NaN": with_bias(np.nan, 0, 0, 0),
    "infinity": with_bias(0, np.inf, 0, 0),
    "an update whose squares overflow": with_bias(3e38, -3e38, 3e38, 3e38),
    "another shape": with_array("attention.bias", np.ones(5, np.float32)),
    "another precision": with_array("attention.bias", np.ones(4)),
    "half precision": with_array("attention.bias", np.ones(4, np.float16)),
    "integers": with_array("attention.bias", np.ones(4, np.int32)),
    "a shape that broadcasts": with_array("attention.bias", np.ones(1, np.float32)),
    "no dimension": with_array("attention.bias", np.float32(1.0)),
    "one array more": with_array("attention.more", np.ones(4, np.float32)),
    "one array less": lambda node: reply_from(node, {"attention.bias": np.ones(4, np.float32)}),
    "other names": lambda node: reply_from(node, {"a": np.ones((5, 3)), "b": np.ones(4)}),
    "no arrays": lambda node: reply_from(node, {}),
    "no examples": lambda node: reply_from(node, moved_by(update_of(node, 1.0)), 0),
    "a failure": failed_reply,
    "silence": lambda node: None,
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", USELESS)
def test_a_useless_reply_counts_as_an_update_of_zero(kind):
    replies = answers((0.5, 1.9, 2.1, 3.0))
    replies[2] = USELESS[kind](replies[2].metadata.src_node_id)
    strategy = make()
    got = change(strategy, [reply for reply in replies if reply is not None])
    # The divisor is still the number of selected clients.
    np.testing.assert_allclose(got, mean_of_clipped((0.5, 1.9, 0.0, 3.0)), atol=ABSOLUTE_TOLERANCE)
    assert spent(strategy).num_releases == 1


def test_an_update_that_overflows_counts_as_zero():
    lowest, highest = np.full((2, 1), 3e38, np.float32) * [[-1], [1]]
    strategy = make()
    before = {"attention.bias": lowest.astype(np.float32)}
    replies = [
        reply_from(node, {"attention.bias": highest.astype(np.float32)})
        for node in grid().get_node_ids()
    ]
    with np.errstate(over="ignore"):
        after, _ = run_round(strategy, replies, before=before)
    np.testing.assert_array_equal(after["attention.bias"], before["attention.bias"])
    assert spent(strategy).num_releases == 1


def test_the_noise_does_not_depend_on_failures():
    whole, part = make(noise=1.0), make(noise=1.0)
    zero = [reply_from(node, shared(start())) for node in grid().get_node_ids()]
    np.testing.assert_allclose(change(whole, zero), change(part, zero[:1]), atol=ABSOLUTE_TOLERANCE)


@pytest.mark.parametrize("lost", ["failed", "silent", "without examples"])
def test_a_release_without_a_valid_reply_is_noise_and_is_accounted_for(lost):
    nodes = grid().get_node_ids()
    replies = {
        "failed": [failed_reply(node) for node in nodes],
        "silent": [],
        "without examples": [reply_from(node, shared(start()), 0) for node in nodes],
    }[lost]
    unchanged = [reply_from(node, shared(start())) for node in nodes]
    strategy = make(noise=1.0)
    released = change(strategy, replies)
    np.testing.assert_allclose(
        released, change(make(noise=1.0), unchanged), atol=ABSOLUTE_TOLERANCE
    )
    assert not np.isclose(released, 0, atol=ABSOLUTE_TOLERANCE).any()
    assert spent(strategy).num_releases == 1


def test_the_order_of_replies_and_of_names_does_not_matter():
    expected = change(make(noise=1.0), answers())
    turned = [
        reply_from(
            reply.metadata.src_node_id,
            {name: a.numpy() for name, a in reversed(reply.content["arrays"].items())},
        )
        for reply in answers()[::-1]
    ]
    assert change(make(noise=1.0), turned).tobytes() == expected.tobytes()


def test_the_number_of_examples_does_not_weigh():
    expected = change(make(noise=1.0), answers())
    assert change(make(noise=1.0), answers(sizes=(1, 2, 10**6, 7))).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.array([1, 2]), "int64 of shape (2,)"),
        (np.float32(1), "float32 of shape ()"),
        (np.ones(2, np.float16), "float16 of shape (2,)"),
        (np.ones((0, 3), np.float32), "float32 of shape (0, 3)"),
    ],
    ids=["integers", "no dimension", "half precision", "no numbers"],
)
def test_arrays_that_cannot_be_clipped_are_refused_by_name(array, part):
    with pytest.raises(ValueError, match=r"'attention\.steps'") as caught:
        run_round(make(), [], before={**start(), "attention.steps": array})
    assert part in str(caught.value)
    # Arrays that are not shared are not clipped.
    assert run_round(make(), answers(), before={**start(), "steps": array})[0] is not None


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("seed", [1, None])
def test_the_noise_is_normal_of_the_right_size(noise, seed):
    many = {"attention.a": np.zeros((100, 60), np.float32), "attention.b": np.zeros(2000, "f4")}
    same = [reply_from(node, many) for node in grid().get_node_ids()]
    after, _ = run_round(make(noise, seed), same, before=many)
    drawn = np.concatenate([array.ravel() for array in after.values()])
    drawn = drawn.astype(float) * CLIENTS / (noise * CLIPPING_NORM)
    low, high = chi2.interval(1 - 1e-9, len(drawn))
    assert low < np.sum(drawn**2) < high
    assert abs(drawn.mean()) < 6 / np.sqrt(len(drawn))
    assert np.mean(np.abs(drawn) < 1) == pytest.approx(0.6827, abs=0.03)
    assert len(np.unique(drawn)) > 0.99 * len(drawn)


def test_a_seed_repeats_the_noise_of_a_round():
    first, again, other = make(1.0, seed=7), make(1.0, seed=7), make(1.0, seed=8)
    rounds = [change(first, answers(), k).tobytes() for k in (1, 2)]
    assert [change(again, answers(), k).tobytes() for k in (1, 2)] == rounds
    assert rounds[0] != rounds[1]
    assert change(other, answers()).tobytes() != rounds[0]


def test_without_a_seed_the_noise_never_repeats():
    drawn = set()
    for _ in range(3):
        np.random.seed(0)
        drawn.add(change(make(1.0, seed=None), answers()).tobytes())
    assert len(drawn) == 3


@pytest.mark.parametrize("seed", [1, None])
def test_numpys_own_state_is_left_as_it_was(seed):
    np.random.seed(5)
    np.random.normal()  # numpy keeps a second number for the next call
    expected = np.random.get_state()
    run_round(make(1.0, seed), answers())
    for left, right in zip(np.random.get_state(), expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(("noise", "releases"), [(0.7, 1), (2.0, 7), (20.0, 50)])
def test_epsilon_is_that_of_dp_accounting(noise, releases):
    strategy = make(noise)
    for server_round in range(1, releases + 1):
        run_round(strategy, answers(), server_round)
    reference = RdpAccountant()
    reference.compose(dp_accounting.GaussianDpEvent(noise), releases)
    assert spent(strategy).epsilon == pytest.approx(reference.get_epsilon(DELTA), rel=0.01)
    # They are equivalent to one release with less noise, whose exact ε is known.
    exact = dp_accounting.get_epsilon_gaussian(noise / np.sqrt(releases), DELTA)
    assert exact <= spent(strategy).epsilon <= 1.25 * exact


def test_a_round_that_would_pass_the_limit_is_not_sent():
    free = make(2.0)
    epsilons = []
    for server_round in (1, 2, 3):
        run_round(free, answers(), server_round)
        epsilons.append(spent(free).epsilon)
    limited = make(2.0, max_epsilon=(epsilons[1] + epsilons[2]) / 2)
    for server_round in (1, 2):
        run_round(limited, answers(), server_round)
    with pytest.raises(PrivacyBudgetExhausted):
        run_round(limited, answers(), 3)
    assert spent(limited).epsilon == epsilons[1]


def test_the_accountant_is_restored_from_its_state():
    first, second = make(2.0), make(2.0)
    for server_round in (1, 2):
        run_round(first, answers(), server_round)
    second.inner.accountant.load_state_dict(first.inner.accountant.state_dict())
    assert spent(second) == spent(first)
    for strategy in (first, second):
        run_round(strategy, answers(), 3)
    assert spent(second) == spent(first)
    assert spent(second).num_releases == 3
