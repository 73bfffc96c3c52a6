"""The content of ``summary.json``, and the metadata of the final model."""

import json

import numpy as np

from fedattn_app.config import Config
from fedattn_app.files import folder_of
from fedattn_app.metrics import METRICS
from fedattn_app.models.factory import describe
from fedattn_app.privacy.protections import Protection
from fedattn_app.server.outcome import Outcome
from fedattn_app.server.preflight import Setup
from fedattn_app.types import Row

# Settings that name a path of one machine; a model that is passed on must not hold them.
PATH_SETTINGS = {"data-path", "output-dir", "resume-from"}


def model_metadata(config: Config, setup: Setup) -> dict[str, str]:
    """Return the metadata that `Predictor` needs besides the arrays. It contains no path."""
    settings = {k: v for k, v in config.to_run_config().items() if k not in PATH_SETTINGS}
    if config.model.pretrained and folder_of(config.model.model):
        settings["model"] = setup.model.family
    metadata = {"labels": json.dumps(setup.labels), "config": json.dumps(settings)}
    return metadata | describe(config, setup.model)


def summary_of(
    config: Config,
    protection: Protection,
    setup: Setup,
    outcome: Outcome,
    num_clients: int,
    best_round: int,
    seconds: float,
) -> Row:
    """Return the content of ``summary.json``.

    Args:
        config: the settings of the run.
        protection: the protection of the run.
        setup: the model and the labels.
        outcome: the run after its last round.
        num_clients: the number of clients that were connected when the run began.
        best_round: the round with the best score; -1 if no round has one.
        seconds: the time of all rounds, those of a resumed run included.
    """
    scores, last = outcome.scores, outcome.history[-1]
    reported = last["central"] or last["evaluate"] or {}
    bytes_up = sum(row["bytes_up"] for row in outcome.history)
    client_rounds = sum(row["clients"] for row in outcome.history)
    accuracies = outcome.client_accuracies
    sizes = {name: array.numpy().size for name, array in outcome.arrays.items()}
    return {
        "strategy": config.aggregation.strategy,
        "shared": config.federation.shared,
        "privacy": config.privacy.privacy,
        "model": config.model.model,
        "dataset": config.data.dataset,
        "num_clients": num_clients,
        "rounds": last["round"],
        **{name: reported.get(name) for name in METRICS},
        "recall_per_class": scores and dict(zip(setup.labels, scores.recall, strict=True)),
        "f1_per_class": scores and dict(zip(setup.labels, scores.f1, strict=True)),
        "worst_client_accuracy": min(accuracies, default=None),
        "best_client_accuracy": max(accuracies, default=None),
        "client_accuracy_deviation": float(np.std(accuracies)) if accuracies else None,
        "best_round": None if best_round < 0 else best_round,
        "epsilon": outcome.budgets.largest or (0.0 if protection.has_budget else None),
        "delta": config.privacy.target_delta if protection.has_budget else None,
        "bytes_up_per_client_round": bytes_up / max(client_rounds, 1),
        "bytes_total": bytes_up + sum(row["bytes_down"] for row in outcome.history),
        "shared_parameters": sum(sizes[name] for name in setup.scope.shared),
        "total_parameters": sum(sizes.values()),
        "seconds": seconds,
        **protection.summary_notes(),
        **_unreported(outcome),
    }


def _unreported(outcome: Outcome) -> Row:
    """Return the summary's entry for clients that may have spent more than they reported."""
    unreported = sorted(outcome.budgets.unreported)
    return {"epsilon_unreported": unreported} if unreported else {}
