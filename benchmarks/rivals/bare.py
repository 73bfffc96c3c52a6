"""No framework: two persistent processes and a straightforward loop over clients.

Models travel as numpy arrays. Tensors would travel as shared memory, which the next client would
overwrite. Each process gets half of the cohort in one message, and with it the global model once
in a round.
"""

import random
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rivals.task import BATCH, CLIENTS, COHORT, LEARNING_RATE, SEED, WEIGHT_DECAY, Task, predict

PROCESSES = 2
State = Mapping[str, np.ndarray]


def race(task: Task) -> tuple[list[float], dict[str, Tensor]]:
    """Train, and return the times of the start and of each round's end, and the global model."""
    state = arrays_of(task.model())
    sampling = random.Random(SEED)
    with get_context("spawn").Pool(PROCESSES, _start, (task,)) as pool:
        times = [time.perf_counter()]
        for _ in range(task.rounds):
            cohort = sampling.sample(range(CLIENTS), COHORT)
            replies = pool.starmap(
                _train, [(client, state) for client in cohort], COHORT // PROCESSES
            )
            state = average(replies)
            times.append(time.perf_counter())
    return times, tensors_of(state)


def arrays_of(model: nn.Module) -> State:
    """Return the parameters of `model` as arrays, which share its memory."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def tensors_of(state: State) -> dict[str, Tensor]:
    """Return the arrays as tensors, which share their memory."""
    return {name: torch.from_numpy(array) for name, array in state.items()}


def average(replies: Sequence[tuple[State, int]]) -> State:
    """Return the average of the models, weighted by their examples."""
    total = sum(count for _, count in replies)
    return {
        name: sum(state[name] * (count / total) for state, count in replies)
        for name in replies[0][0]
    }


def _start(task: Task) -> None:
    """Set up a process: one thread, one model, the examples of all clients."""
    global model, clients
    torch.set_num_threads(1)
    model, clients = task.model(), task.clients()


def _train(client: int, state: State) -> tuple[State, int]:
    model.load_state_dict(tensors_of(state))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    ids, lengths, labels = clients[client]
    for index in torch.randperm(len(labels)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(predict(model, ids[index], lengths[index]), labels[index]).backward()
        optimizer.step()
    return arrays_of(model), len(labels)
