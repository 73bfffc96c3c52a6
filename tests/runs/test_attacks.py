"""What malicious clients send, compared with the formulas of the papers."""

from statistics import NormalDist

import numpy as np
import pytest
from attacks import ATTACKS, AttackedClientApp
from flwr.app import Message
from helpers.runs import QUICK, same_arrays

from fedattn_app.data.triage import LABELS
from fedattn_app.simulation import simulate

NUM_CLIENTS = 5
NUM_MALICIOUS = 2


class RecordingApp(AttackedClientApp):
    """Records the arrays that each partition receives and those that it replies."""

    def __init__(self, attack, fraction, seed=1):
        super().__init__(attack, fraction, NUM_CLIENTS, seed)
        self.received, self.replied = {}, {}

    def __call__(self, message: Message, context):
        reply = super().__call__(message, context)
        if message.metadata.message_type == "train":
            partition = context.node_config["partition-id"]
            self.received[partition] = arrays_of(message)
            self.replied[partition] = arrays_of(reply)
        return reply


def arrays_of(message):
    record = message.content.array_records["arrays"]
    return {name: array.numpy() for name, array in record.items()}


def equal(left, right):
    """Whether two dicts of arrays are equal bit for bit."""
    assert left.keys() == right.keys()
    return all(np.array_equal(left[name], right[name]) for name in left)


def run(folder, attack, fraction=NUM_MALICIOUS / NUM_CLIENTS, **settings):
    """Run one round, or as many as `settings` say, and return the app and the result."""
    app = RecordingApp(attack, fraction)
    config = {**QUICK, "num-rounds": 1, **settings, "output-dir": str(folder / "run")}
    return app, simulate(config, NUM_CLIENTS, workers=1, quiet=True, clients=app)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A run without malicious clients."""
    app, _ = run(tmp_path_factory.mktemp("honest"), "sign-flip", 0.0)
    assert app.malicious == []
    return app


@pytest.mark.parametrize("attack", ATTACKS)
def test_exactly_the_malicious_clients_send_something_else(tmp_path, honest, attack):
    app, _ = run(tmp_path, attack)
    assert len(app.malicious) == NUM_MALICIOUS
    assert app.replied.keys() == set(range(NUM_CLIENTS))
    changed = [p for p in app.replied if not equal(app.replied[p], honest.replied[p])]
    assert sorted(changed) == app.malicious


def test_the_seed_selects_the_malicious_clients():
    selected = [tuple(AttackedClientApp("ipm", 0.3, 10, seed).malicious) for seed in range(8)]
    assert len(set(selected)) > 1
    assert all(len(set(partitions)) == 3 for partitions in selected)
    assert selected[0] == tuple(AttackedClientApp("ipm", 0.3, 10, 0).malicious)


def expected(attack, sent, own, accomplices):
    stacked = {k: np.stack([arrays[k] for arrays in accomplices]) for k in sent}
    if attack == "sign-flip":
        return {k: 2 * sent[k] - own[k] for k in sent}
    if attack == "scale":
        return {k: sent[k] + 10 * (own[k] - sent[k]) for k in sent}
    if attack == "ipm":
        return {k: sent[k] - 2 * (stacked[k].mean(0) - sent[k]) for k in sent}
    # 5 clients, 2 malicious: s = 3 - 2 = 1 supporter; z = Φ⁻¹((5 - 2 - 1) / (5 - 2)).
    z = NormalDist().inv_cdf(2 / 3)
    return {k: stacked[k].mean(0) - z * stacked[k].std(0) for k in sent}


@pytest.mark.parametrize("attack", ["sign-flip", "scale", "ipm", "alie"])
def test_an_attack_follows_the_formula(tmp_path, honest, attack):
    app, _ = run(tmp_path, attack)
    assert len(app.malicious) == NUM_MALICIOUS
    accomplices = [honest.replied[partition] for partition in app.malicious]
    for partition in app.malicious:
        arrays = expected(attack, app.received[partition], honest.replied[partition], accomplices)
        for name, array in app.replied[partition].items():
            np.testing.assert_allclose(array, arrays[name], rtol=1e-4, atol=1e-6)


def test_noise_is_standard_normal_and_independent(tmp_path):
    app, _ = run(tmp_path, "noise")
    noise = [
        np.concatenate([np.ravel(app.replied[p][k] - app.received[p][k]) for k in app.received[p]])
        for p in app.malicious
    ]
    assert len(noise) == NUM_MALICIOUS
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05
    for values in noise:
        assert np.mean(values) == pytest.approx(0.0, abs=0.05)
        assert np.std(values) == pytest.approx(1.0, abs=0.05)


def test_an_attack_is_repeated_bit_for_bit(tmp_path):
    (left, left_result), (right, right_result) = (
        run(tmp_path / side, "noise") for side in ("left", "right")
    )
    assert left.malicious == right.malicious != []
    assert same_arrays(left_result, right_result)


def test_flipped_labels_are_k_minus_1_minus_y(tmp_path, honest):
    """With the label names in reverse order, an honest client trains on the labels K - 1 - y."""
    attacked, _ = run(tmp_path / "attacked", "label-flip")
    reverse, _ = run(tmp_path / "reverse", "label-flip", 0.0, labels=",".join(LABELS[::-1]))
    assert len(attacked.malicious) == NUM_MALICIOUS
    for partition, arrays in attacked.replied.items():
        source = reverse if partition in attacked.malicious else honest
        assert equal(arrays, source.replied[partition])


def test_flipped_labels_do_not_outlast_the_attack(tmp_path):
    """A process caches examples: later runs must find them with their true labels."""
    settings = {"seed": 23}  # of no other test, so that the examples are not cached yet
    _, before = run(tmp_path / "before", "label-flip", 0.0, **settings)
    # Three malicious clients: to flip labels twice is not to flip them.
    app, attacked = run(tmp_path / "attacked", "label-flip", 0.6, **settings)
    assert len(app.malicious) == 3
    _, after = run(tmp_path / "after", "label-flip", 0.0, **settings)
    assert not same_arrays(attacked, before)
    assert same_arrays(after, before)


def test_the_geometric_median_tolerates_what_the_mean_does_not(tmp_path):
    settings = {"num-rounds": 6, "partitioner": "iid", "max-length": 32, "vocabulary": 4096}

    def accuracy(folder, fraction, strategy):
        more = {**settings, "strategy": strategy}
        return run(tmp_path / folder, "scale", fraction, **more)[1].summary["accuracy"]

    unattacked = accuracy("unattacked", 0.0, "fedavg")
    assert accuracy("mean", 0.4, "fedavg") < unattacked - 0.1
    assert accuracy("median", 0.4, "geometric-median") > unattacked - 0.05


@pytest.mark.slow
def test_three_malicious_clients_of_ten_on_trec(tmp_path, shared_data):
    """Updates scaled by ten ruin the mean; two robust rules lose five points at most."""
    trec = {"dataset": "file", "data-path": str(shared_data / "trec"), "partitioner": "iid"}
    config = {**trec, "num-rounds": 5, "max-length": 32, "learning-rate": 0.004}

    def accuracy(rule, fraction, **own):
        settings = {**config, "fraction-evaluate": 0.0, "strategy": rule, **own}
        result = simulate(
            {**settings, "output-dir": str(tmp_path / f"{rule}-{fraction}")},
            10,
            quiet=True,
            clients=AttackedClientApp("scale", fraction, 10, 1),
        )
        return result.summary["accuracy"]

    unattacked = accuracy("fedavg", 0.0)
    assert unattacked > 0.7
    assert accuracy("fedavg", 0.3) < unattacked - 0.2
    assert accuracy("geometric-median", 0.3) > unattacked - 0.05
    assert accuracy("multikrum", 0.3, **{"malicious-clients": 3}) > unattacked - 0.05
