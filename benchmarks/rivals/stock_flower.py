"""Flower as its PyTorch quickstart uses it, on both cores.

As in the quickstart, each call makes the model and the `DataLoader`, and the global model travels
as an `ArrayRecord`. The examples are tensors in memory, which is faster than the image files of the
quickstart.
"""

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fedattn_app.models.transformer import TransformerClassifier
from rivals.task import (
    BATCH,
    CLIENTS,
    COHORT,
    LABELS,
    LEARNING_RATE,
    SHAPES,
    WEIGHT_DECAY,
    Task,
    predict,
)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on local data."""
    config = message.content["config"]
    task = Task(config["shape"], config["folder"], 1)
    model = TransformerClassifier(SHAPES[task.shape], LABELS)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    data = TensorDataset(*task.clients()[context.node_config["partition-id"]])
    loss = fit(model, DataLoader(data, batch_size=BATCH, shuffle=True), config["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


def fit(model: nn.Module, loader: DataLoader, rate: float) -> float:
    """Train one epoch and return the mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    model.train()
    running_loss = 0.0
    for ids, lengths, labels in loader:
        optimizer.zero_grad()
        loss = criterion(predict(model, ids, lengths), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / len(loader)


def race(task: Task) -> tuple[list[float], dict[str, Tensor]]:
    """Train, and return the times of the start and of each round's end, and the global model."""
    times: list[float] = []
    state: dict[str, Tensor] = {}
    server = ServerApp()

    def record_time(server_round: int, arrays: ArrayRecord) -> None:
        times.append(time.perf_counter())

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        result = FedAvg(fraction_train=COHORT / CLIENTS, fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord(task.model().state_dict()),
            num_rounds=task.rounds,
            train_config=ConfigRecord(
                {"lr": LEARNING_RATE, "shape": task.shape, "folder": task.folder}
            ),
            evaluate_fn=record_time,
        )
        state.update(result.arrays.to_torch_state_dict())

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return times, state
