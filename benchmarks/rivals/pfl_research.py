"""pfl-research (Granqvist et al., 2024, arXiv 2404.06430), whose clients share one model in place.

`torchrun` starts the processes. Each trains its part of every cohort, and they add their sums over
gloo. The batches of a client are made once, and only the first round evaluates. All clients have
the same number of examples, so that its unweighted average equals the weighted one.
"""

import time
from functools import partial

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.nn import functional as F

from fedattn_app.models.transformer import TransformerClassifier
from rivals.task import (
    BATCH,
    CLIENTS,
    COHORT,
    LABELS,
    LEARNING_RATE,
    SEED,
    SHAPES,
    WEIGHT_DECAY,
    Task,
    predict,
)


class Net(TransformerClassifier):
    """The model with the two methods that pfl requires."""

    def loss(self, ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a training batch."""
        self.train()
        return F.cross_entropy(predict(self, ids, lengths), labels)

    @torch.no_grad()
    def metrics(self, ids: Tensor, lengths: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Return the summed loss of a batch."""
        self.eval()
        loss = F.cross_entropy(predict(self, ids, lengths), labels, reduction="sum")
        return {"loss": Weighted(loss.item(), len(labels))}


class RoundTimes(TrainingProcessCallback):
    """Records the times of the start and of the end of each round."""

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Record the start."""
        self.times = [time.perf_counter()]
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Record the end of a round; never stop the training."""
        self.times.append(time.perf_counter())
        return False, Metrics()


def race(task: Task) -> tuple[list[float], dict[str, Tensor]]:
    """Train, and return the times of the start and of each round's end, and the global model."""
    torch.set_num_threads(1)
    np.random.seed(SEED)  # the processes must draw the same cohorts
    net = Net(SHAPES[task.shape], LABELS)
    net.load_state_dict(task.model().state_dict())
    model = PyTorchModel(
        net,
        partial(torch.optim.AdamW, weight_decay=WEIGHT_DECAY, fused=True),
        central_optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
    )
    users = [PyTorchTensorDataset(examples) for examples in task.clients()]
    data = FederatedDataset(users.__getitem__, get_user_sampler("random", range(CLIENTS)))
    round_times = RoundTimes()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds,
            train_cohort_size=COHORT,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH
        ),
        callbacks=[round_times],
        send_metrics_to_platform=False,
    )
    return round_times.times, net.state_dict()
