"""The attacks of the benchmarks: what liars send, against the papers' formulas."""

from statistics import NormalDist

import numpy as np
import pytest
from attacks import LIES, Attacked
from flwr.app import Message
from helpers.runs import QUICK, same_arrays

from fedattn_app import client_app
from fedattn_app.simulation import simulate

CLIENTS = 5


class Listening(Attacked):
    """Keeps what each partition was sent and answers."""

    def __init__(self, attack, fraction=0.4, seed=1):
        super().__init__(attack, fraction, CLIENTS, seed)
        self.sent, self.told = {}, {}

    def __call__(self, message: Message, context):
        reply = super().__call__(message, context)
        if message.metadata.message_type == "train":
            partition = context.node_config["partition-id"]
            for kept, content in ((self.sent, message.content), (self.told, reply.content)):
                record = content.array_records["arrays"]
                kept[partition] = {name: array.numpy() for name, array in record.items()}
        return reply


def listen(tmp_path, attack, fraction=0.4, **more):
    app = Listening(attack, fraction)
    config = {
        **QUICK,
        "num-rounds": 1,
        **more,
        "output-dir": str(tmp_path / f"{attack}-{fraction}"),
    }
    result = simulate(config, CLIENTS, workers=1, quiet=True, clients=app)
    return app, result


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    app, _ = listen(tmp_path_factory.mktemp("honest"), "sign-flip", 0.0)
    assert app.attackers == []
    return app


@pytest.mark.parametrize("attack", LIES)
def test_only_the_chosen_ones_lie(tmp_path, honest, attack):
    app, _ = listen(tmp_path, attack)
    assert len(app.attackers) == 2
    for partition, arrays in app.told.items():
        same = all(np.array_equal(arrays[k], honest.told[partition][k]) for k in arrays)
        assert same == (partition not in app.attackers)


def test_who_lies_is_decided_by_the_seed():
    chosen = [tuple(Attacked("ipm", 0.3, 10, seed).attackers) for seed in range(8)]
    assert len(set(chosen)) > 1
    assert all(len(set(of)) == 3 for of in chosen)
    assert chosen[0] == tuple(Attacked("ipm", 0.3, 10, 0).attackers)


def expected(attack, sent, own, honest_ones):
    stacked = {k: np.stack([arrays[k] for arrays in honest_ones]) for k in sent}
    if attack == "sign-flip":
        return {k: 2 * sent[k] - own[k] for k in sent}
    if attack == "scale":
        return {k: sent[k] + 10 * (own[k] - sent[k]) for k in sent}
    if attack == "ipm":
        return {k: sent[k] - 2 * (stacked[k].mean(0) - sent[k]) for k in sent}
    # 5 clients, 2 liars: s = 3 - 2 = 1 supporter; z = Φ⁻¹((5 - 2 - 1) / (5 - 2)).
    z = NormalDist().inv_cdf(2 / 3)
    return {k: stacked[k].mean(0) - z * stacked[k].std(0) for k in sent}


@pytest.mark.parametrize("attack", ["sign-flip", "scale", "ipm", "alie"])
def test_a_lie_is_the_papers_formula(tmp_path, honest, attack):
    app, _ = listen(tmp_path, attack)
    for liar in app.attackers:
        told = [honest.told[partition] for partition in app.attackers]
        should = expected(attack, app.sent[liar], honest.told[liar], told)
        for name, array in app.told[liar].items():
            np.testing.assert_allclose(array, should[name], rtol=1e-4, atol=1e-6)


def test_noise_is_normal_and_of_each_liar_its_own(tmp_path):
    app, _ = listen(tmp_path, "noise")
    noise = [
        np.concatenate([np.ravel(app.told[p][k] - app.sent[p][k]) for k in app.sent[p]])
        for p in app.attackers
    ]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.05
    for values in noise:
        assert np.std(values) == pytest.approx(1.0, abs=0.05)


def test_an_attack_is_repeated_to_the_bit(tmp_path):
    left, right = (listen(tmp_path / side, "noise") for side in ("left", "right"))
    for name, array in left[1].arrays.items():
        assert array.tobytes() == right[1].arrays[name].tobytes()


def test_false_labels_stay_with_the_liars(tmp_path):
    listen(tmp_path, "label-flip")
    _, clean = listen(tmp_path, "label-flip", 0.0)
    direct = simulate(
        {**QUICK, "num-rounds": 1, "output-dir": str(tmp_path / "direct")},
        CLIENTS,
        workers=1,
        quiet=True,
        clients=client_app.app,
    )
    assert same_arrays(clean, direct)


def test_the_median_holds_where_the_mean_does_not(tmp_path):
    more = {"num-rounds": 6, "partitioner": "iid", "max-length": 32, "vocabulary": 4096}
    fine = listen(tmp_path / "fine", "scale", 0.0, **more)[1].summary["accuracy"]
    mean = listen(tmp_path / "mean", "scale", **more)[1].summary["accuracy"]
    median = {**more, "strategy": "geometric-median"}
    robust = listen(tmp_path / "robust", "scale", **median)[1].summary["accuracy"]
    assert mean < fine - 0.1
    assert robust > fine - 0.05


@pytest.mark.slow
def test_three_liars_of_ten_on_trec(tmp_path, shared_data):
    """Scaled by ten they ruin the mean, and two robust rules lose five points at most."""
    trec = {"dataset": "file", "data-path": str(shared_data / "trec"), "partitioner": "iid"}
    config = {**trec, "num-rounds": 5, "max-length": 32, "learning-rate": 0.004}

    def accuracy(rule, fraction, **own):
        settings = {**config, "fraction-evaluate": 0.0, "strategy": rule, **own}
        result = simulate(
            {**settings, "output-dir": str(tmp_path / f"{rule}-{fraction}")},
            10,
            quiet=True,
            clients=Attacked("scale", fraction, 10, 1),
        )
        return result.summary["accuracy"]

    fine = accuracy("fedavg", 0.0)
    assert fine > 0.7
    assert accuracy("fedavg", 0.3) < fine - 0.2
    assert accuracy("geometric-median", 0.3) > fine - 0.05
    assert accuracy("multikrum", 0.3, **{"malicious-clients": 3}) > fine - 0.05
