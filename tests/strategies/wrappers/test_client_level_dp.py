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
from fedattn_app.privacy.randomness import SecretRandom
from strategies import AttentionOnly, ClientLevelDP, ClippingNormError, check_clipping_norm
from strategies.wrappers.client_level_dp import smallest_clipping_norm

CLIENTS = 4
CLIPPING_NORM = 2.0
DELTA = 1e-5
NEGLIGIBLE_NOISE = 1e-6
ABSOLUTE_TOLERANCE = 1e-6  # the spacing of float32 above 2, or much noise of `NEGLIGIBLE_NOISE`


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


def normal_from(seed):
    """A source of noise that repeats for a seed, and never for None."""

    def normal(server_round, count):
        random = SecretRandom() if seed is None else SecretRandom.from_seed(seed, server_round)
        return random.normal(count).numpy()

    return normal


def make(noise=NEGLIGIBLE_NOISE, seed: int | None = 1, max_epsilon=None, norm=CLIPPING_NORM):
    protected = ClientLevelDP(FedAvg(), noise, norm, DELTA, normal_from(seed), max_epsilon)
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
    assert metrics is None


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


def test_an_update_as_large_as_float32_allows_is_clipped():
    """Its squares are no float32, and neither is the difference of the two models."""
    before = {"attention.bias": np.full(2, -3e38, np.float32)}
    replies = [
        reply_from(node, {"attention.bias": np.full(2, 3e38, np.float32)})
        for node in grid().get_node_ids()
    ]
    after, _ = run_round(make(norm=1e34), replies, before=before)
    moved = after["attention.bias"].astype(np.float64) - before["attention.bias"]
    assert np.linalg.norm(moved) == pytest.approx(1e34, rel=0.01)


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


def test_noise_is_drawn_once_per_round_and_not_from_numpys_generator():
    asked = []

    def normal(server_round, count):
        asked.append((server_round, count))
        return np.arange(count, dtype=np.float64)

    strategy = AttentionOnly(
        ClientLevelDP(FedAvg(), 1.0, CLIPPING_NORM, DELTA, normal), is_shared, needs_no_replies=True
    )
    np.random.seed(5)
    np.random.normal()  # numpy keeps a second number for the next call
    expected = np.random.get_state()
    released = change(strategy, [], server_round=3)
    np.testing.assert_allclose(released, np.arange(19) * CLIPPING_NORM / CLIENTS, atol=1e-6)
    assert asked == [(3, 19)]
    for left, right in zip(np.random.get_state(), expected, strict=True):
        np.testing.assert_array_equal(left, right)


def large(dtype, size=3000, scale=1.0):
    rng = np.random.default_rng(3)
    return {"attention.weight": (scale * rng.normal(size=(size // 10, 10))).astype(dtype)}


def contribution(before, norm):
    """How much one client moves the released model, in units of its clipping norm.

    It sends the largest update that is not clipped, or one that is clipped.
    """

    def released(replies):
        strategy = make(1e-9, norm=norm)
        after, _ = run_round(strategy, replies, before=before)
        return np.concatenate([array.ravel() for array in after.values()]).astype(np.float64)

    node = grid().get_node_ids()[0]
    rng = np.random.default_rng(4)
    without = released([])
    moves = []
    for length in (norm, 1e3 * norm, 1e6):
        update = {name: rng.normal(size=array.shape) for name, array in before.items()}
        size = np.sqrt(sum(np.sum(part**2) for part in update.values()))
        arrays = {
            name: (array + update[name] * length / size).astype(array.dtype)
            for name, array in before.items()
        }
        replies = [reply_from(node, arrays)]
        moves.append(np.linalg.norm(released(replies) - without) * CLIENTS / norm)
    return max(moves)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("above", [1.001, 1.5, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_client_moves_the_model_by_at_most_its_clipping_norm(dtype, above, scale):
    before = large(dtype, scale=scale)
    norm = above * smallest_clipping_norm(before)
    # The released model is rounded after the noise; the client's part of it is C / CLIENTS.
    assert contribution(before, norm) <= 1.001 + 0.01 * CLIENTS / above


@pytest.mark.parametrize("norm", [1e-7, 1e-5])
def test_small_clipping_norms_hold_in_double_precision(norm):
    assert contribution(large(np.float64), norm) <= 1.01


@pytest.mark.parametrize("norm", [1e-7, 1e-5, "just below"])
def test_clipping_norms_that_float32_cannot_hold_are_refused(norm):
    before = large(np.float32)
    smallest = smallest_clipping_norm(before)
    norm = 0.999 * smallest if norm == "just below" else norm
    assert norm < smallest
    with pytest.raises(ClippingNormError, match=f"^{norm:g}: must be at least {smallest:.3g},"):
        run_round(make(norm=norm), [], before=before)
    check_clipping_norm(before, 1.001 * smallest)


def test_the_smallest_clipping_norm_by_hand():
    # The numbers of float32 from 1 to 2 are 2⁻²³ apart, and those from 4 to 8 four times as far.
    arrays = {"a": np.array([[1.5, -1.0]], np.float32), "b": np.array([0.0, -4.5], np.float32)}
    assert smallest_clipping_norm(arrays) == pytest.approx(100 * 2**-23 * np.sqrt(2 + 16))


def test_a_model_that_grows_too_large_for_its_clipping_norm_gets_no_message():
    norm = 2 * smallest_clipping_norm(large(np.float32))
    strategy = make(norm=norm)
    run_round(strategy, [], before=large(np.float32))
    with pytest.raises(ClippingNormError):
        run_round(strategy, [], server_round=2, before=large(np.float32, scale=8.0))
    assert spent(strategy).num_releases == 1


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
