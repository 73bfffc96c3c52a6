"""FedSGD against gradient descent on all examples in one place."""

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from helpers.replying import after_round, record, reply

from fedattn_app.engine.local_grid import LocalGrid
from strategies import FedSGD

SIZES = (5, 17, 2, 40)
TRUE = np.array([1.5, -2.0, 0.5])


def linear_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(sum(SIZES), 3))
    return x, x @ TRUE + 0.7 + 0.01 * rng.normal(size=len(x))


def linear_client():
    """Return an app whose clients have a part of the data each and return gradients."""
    x, y = linear_data()
    ends = np.cumsum((0, *SIZES))
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert message.content.config_records["config"]["local-task"] == "gradient"
        given = message.content.array_records["arrays"]
        share = slice(*ends[context.node_config["partition-id"] :][:2])
        error = x[share] @ given["w"].numpy() + given["b"].numpy() - y[share]
        gradient = {"w": 2 * x[share].T @ error / len(error), "b": 2 * error.mean()}
        metrics = MetricRecord({"num-examples": len(error), "loss": float(np.mean(error**2))})
        return Message(
            RecordDict({"arrays": record(**gradient), "metrics": metrics}), reply_to=message
        )

    return app


def rounds(rule, count, app, arrays):
    grid = LocalGrid(app, len(SIZES), {})
    for server_round in range(1, count + 1):
        messages = rule.configure_train(server_round, arrays, ConfigRecord(), grid)
        arrays, metrics = rule.aggregate_train(server_round, grid.send_and_receive(messages))
    return arrays, metrics


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_linear_regression_is_gradient_descent_in_one_place(momentum):
    rule = FedSGD(0.05, momentum, min_train_nodes=1, min_available_nodes=1)
    start = record(w=np.zeros(3), b=np.zeros(()))
    arrays, _ = rounds(rule, 60, linear_client(), start)
    x, y = (torch.from_numpy(values) for values in linear_data())
    w, b = torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    w.requires_grad_(), b.requires_grad_()
    descent = torch.optim.SGD([w, b], lr=0.05, momentum=momentum)
    for _ in range(60):
        descent.zero_grad()
        ((x @ w + b - y) ** 2).mean().backward()
        descent.step()
    np.testing.assert_allclose(arrays["w"].numpy(), w.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(arrays["b"].numpy(), b.detach().numpy(), rtol=1e-12)


def test_linear_regression_is_solved():
    rule = FedSGD(0.1, min_train_nodes=1, min_available_nodes=1)
    arrays, metrics = rounds(rule, 300, linear_client(), record(w=np.zeros(3), b=np.zeros(())))
    np.testing.assert_allclose(arrays["w"].numpy(), TRUE, atol=0.01)
    assert metrics["loss"] < 2e-4


def test_one_step_by_hand():
    # (1·2 + 3·6) / 4 = 5; 10 − 0.1·5 = 9.5
    replies = [reply(0, 1, w=np.float32([2.0])), reply(1, 3, w=np.float32([6.0]))]
    after = after_round(FedSGD(0.1), {"w": np.float32([10.0])}, replies)
    assert after["w"].tolist() == [9.5]


def test_the_model_stays_without_a_reply():
    assert FedSGD().aggregate_train(1, []) == (None, None)
