"""The Flower ServerApp: builds model, strategy and folder, runs the rounds, sums up."""

import json
import logging
import sys
import time
from collections.abc import Mapping, Set
from functools import partial

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedattn_app.config import Config, TrainingConfig
from fedattn_app.console import printing
from fedattn_app.data.examples import Examples
from fedattn_app.data.labels import label_names
from fedattn_app.data.loading import server_has_data, server_test_set
from fedattn_app.errors import RunFailedError, UserError
from fedattn_app.files import folder_of
from fedattn_app.metrics import Scores
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import build_classifier, describe
from fedattn_app.models.parameters import fingerprint, set_arrays, view_arrays, without
from fedattn_app.models.scopes import Scope, scope_of
from fedattn_app.privacy.accounting import Steps, noise_for
from fedattn_app.results.run_folder import RunFolder, RunResult
from fedattn_app.server.outcome import Outcome
from fedattn_app.server.partition_grid import PartitionGrid
from fedattn_app.server.rounds import Rounds
from fedattn_app.server.strategy_factory import Phase, check_cohort, make_rule, with_noise
from fedattn_app.training.evaluation import evaluate
from fedattn_app.types import NDArray, Row
from strategies import ClientLevelDP

log = logging.getLogger("fedattn")

# What a model that is passed on should not tell.
PRIVATE_SETTINGS = {"data-path", "output-dir", "resume-from"}
NOT_PRIVATE = "the noise came from the seed, which every party knows: this ε holds for nobody"
MODEL_ONLY = (
    "ε covers the models, in model.safetensors, best.safetensors and checkpoint/; the scores and "
    "the other files of this folder carry no noise"
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one federation as the run-config says. Raises `UserError` and `RunFailedError`."""
    try:
        with printing():
            run(PartitionGrid(grid), Config.from_run_config(context.run_config))
    except (UserError, RunFailedError):
        sys.tracebacklimit = 0  # Flower logs the exception and ends this process: one line will do
        raise


def run(grid: PartitionGrid, config: Config) -> RunResult:
    """Run one federation on `grid` and return its folder.

    Raises `UserError` before any training for a mistake in `config`, and `RunFailedError` when no
    client can go on.
    """
    began = time.perf_counter()
    federation = config.federation
    labels = label_names(config.data)
    if len(labels) < 2:
        raise UserError(f"labels: a classifier needs at least 2, there are {len(labels)}")
    test = server_test_set(config.data, config.model, federation.seed)
    if federation.local == "personal" and test is not None:
        log.info("personal parameters: the clients evaluate, the server has no whole model to test")
        test = None
    _check_patience(config, test is not None)
    model = _build_classifier(config, len(labels))
    arrays = view_arrays(model)
    scope = scope_of(federation.shared, federation.local, model.family, arrays)
    about = _about(config, labels, model)
    frozen = fingerprint(without(arrays, scope.trainable)) if scope.frozen else ""
    _check_attainable(config)
    folder = RunFolder(config, frozen)
    protected = with_noise(config, folder) if config.privacy.privacy == "client-dp" else None
    kept = frozenset(arrays) if federation.warmup_rounds else scope.shared
    if config.output.resume_from:
        _carry_on(model, kept, folder.arrays, config.output.resume_from)
    rounds = Rounds(
        phases=_phases(config, scope, frozen, protected),
        grid=grid,
        folder=folder,
        config=config,
        kept=kept,
        num_labels=len(labels),
        evaluate=None if test is None else partial(_score, model, test, len(labels)),
        accountant=protected.accountant if protected else None,
    )
    log.info("%s", _plan(config, labels, scope, arrays))
    _say_what_is_private(config)
    if config.model.pretrained and config.training.learning_rate == TrainingConfig.learning_rate:
        log.warning(
            "learning-rate = %g suits the built-in model; for a pretrained one try 2e-3 for "
            "adapters or the head, 5e-4 for attention, 2e-4 for all",
            TrainingConfig.learning_rate,
        )
    log.info("results go to %s", folder.path)
    clients = grid.wait_for_clients(federation.min_clients)
    if server_has_data(config.data) and folder.num_partitions not in (0, grid.num_partitions):
        raise UserError(
            f"{grid.num_partitions} clients: the run to carry on split its data over "
            f"{folder.num_partitions}; give --num-supernodes {folder.num_partitions}"
        )
    check_cohort(config, clients)
    if protected and config.privacy.target_delta * clients >= 1:
        raise UserError(
            f"target-delta = {config.privacy.target_delta:g}: must be below 1 / number of "
            f"clients = 1 / {clients}"
        )
    try:
        outcome = rounds.run(arrays)
    except KeyboardInterrupt:
        log.warning("interrupted; the rounds so far are in %s", folder.path)
        raise
    if outcome.history == folder.earlier and folder.finished:
        log.info("no round was run; %s stays as it was", folder.path)
        return RunResult(folder.path)
    seconds = time.perf_counter() - began + sum(row["seconds"] for row in folder.earlier)
    summary = _summary(config, labels, scope, clients, outcome, folder.best[0], seconds)
    final = {name: array.numpy() for name, array in outcome.arrays.items()}
    folder.finish(summary, final, about)
    log.info("results in %s", folder.path)
    return RunResult(folder.path)


def _build_classifier(config: Config, num_labels: int) -> Classifier:
    try:
        return build_classifier(config, num_labels)
    except RuntimeError as error:  # torch's way to say that memory does not suffice
        reason = str(error).splitlines()[0]
        raise UserError(f"model = {config.model.model!r}: cannot be built ({reason})") from None


def _phases(
    config: Config, scope: Scope, frozen: str, protected: ClientLevelDP | None
) -> list[Phase]:
    """Return the rounds that share all, if there are any, and those that share what they should."""
    warmup = config.federation.warmup_rounds
    if not warmup:
        told = {"frozen-fingerprint": frozen} if frozen else {}
        return [Phase.of(protected or make_rule(config), config, scope.shared, told)]
    everything = scope.shared | scope.frozen
    return [
        Phase.of(protected or make_rule(config), config, everything, {}),
        # What was trained before cannot be known to who was not there: it goes along.
        Phase.of(
            protected or make_rule(config), config, scope.shared, {}, warmup + 1, with_rest=True
        ),
    ]


def _carry_on(
    model: Classifier, kept: Set[str], arrays: Mapping[str, NDArray], resumed: str
) -> None:
    try:
        if odd := sorted(kept ^ arrays.keys()):
            raise ValueError(f"it differs in {', '.join(odd)}")
        set_arrays(model, arrays)
    except ValueError as error:
        raise UserError(f"resume-from = {resumed}: the checkpoint does not fit ({error})") from None


def _check_patience(config: Config, tested: bool) -> None:
    """Raise `UserError` where `patience` has no score to go by."""
    privacy, federation = config.privacy.privacy, config.federation
    told = (
        config.fraction_evaluate
        and privacy != "client-dp"
        and config.aggregation.strategy != "fedbuff"
    )
    noisy = privacy == "dp-sgd" and federation.score == "loss"
    if federation.patience and not tested and (noisy or not told):
        raise UserError(
            f"patience = {federation.patience}: nothing tells the {federation.score} after each "
            "round: the server has no test set, and the clients do not tell"
        )


def _check_attainable(config: Config) -> None:
    """Raise `UserError` for a target that no noise is enough for, not even in one step."""
    privacy = config.privacy
    target, delta, step = privacy.target_epsilon, privacy.target_delta, Steps(0.0, 1.0, 1)
    if target and noise_for(target, delta, step, (), privacy.accountant) is None:
        raise UserError(
            f"target-epsilon = {target:g}: no noise is enough for it at target-delta = {delta:g}"
        )


def _say_what_is_private(config: Config) -> None:
    privacy = config.privacy
    if privacy.privacy == "dp-sgd" and not privacy.evaluate_epsilon:
        log.info("dp-sgd: clients do not evaluate (evaluate-epsilon = 0)")
    if privacy.reproducible_noise:
        log.warning("reproducible-noise: %s", NOT_PRIVATE)


def _score(
    model: Classifier, test: Examples, num_labels: int, arrays: Mapping[str, NDArray]
) -> Scores:
    set_arrays(model, arrays)
    return evaluate(model, test, num_labels)


def _about(config: Config, labels: tuple[str, ...], model: Classifier) -> dict[str, str]:
    """Return the metadata of the final model: all that `Predictor` needs, and no path."""
    settings = {k: v for k, v in config.to_run_config().items() if k not in PRIVATE_SETTINGS}
    if config.model.pretrained and folder_of(config.model.model):
        settings["model"] = model.family
    about = {"labels": json.dumps(labels), "config": json.dumps(settings)}
    return about | describe(config, model)


def _plan(
    config: Config, labels: tuple[str, ...], scope: Scope, arrays: Mapping[str, NDArray]
) -> str:
    travelling = sum(arrays[name].size for name in scope.shared)
    total = sum(array.size for array in arrays.values())
    warmup = config.federation.warmup_rounds
    return (
        f"{config.data.dataset}: {len(labels)} labels; {config.model.model} model; "
        f"{config.aggregation.strategy} shares {config.federation.shared}: "
        f"{travelling:,} of {total:,} parameters"
        + (f", after {warmup} rounds of all" if warmup else "")
    )


def _summary(
    config: Config,
    labels: tuple[str, ...],
    scope: Scope,
    clients: int,
    outcome: Outcome,
    best_round: int,
    seconds: float,
) -> Row:
    scores, last = outcome.scores, outcome.history[-1]
    told = last["central"] or last["evaluate"] or {}
    up = sum(row["bytes_up"] for row in outcome.history)
    client_rounds = sum(row["clients"] for row in outcome.history)
    spent, clients_did = outcome.spending.largest, outcome.client_accuracies
    sizes = {name: array.numpy().size for name, array in outcome.arrays.items()}
    return {
        "strategy": config.aggregation.strategy,
        "shared": config.federation.shared,
        "privacy": config.privacy.privacy,
        "model": config.model.model,
        "dataset": config.data.dataset,
        "num_clients": clients,
        "rounds": last["round"],
        "accuracy": told.get("accuracy"),
        "macro_f1": told.get("macro_f1"),
        "recall_per_class": scores and dict(zip(labels, scores.recall, strict=True)),
        "f1_per_class": scores and dict(zip(labels, scores.f1, strict=True)),
        "worst_client_accuracy": min(clients_did, default=None),
        "best_client_accuracy": max(clients_did, default=None),
        "client_accuracy_deviation": float(np.std(clients_did)) if clients_did else None,
        "best_round": None if best_round < 0 else best_round,
        "epsilon": spent if config.privacy.privacy == "none" else spent or 0.0,
        "delta": config.privacy.target_delta if config.privacy.privacy != "none" else None,
        "bytes_up_per_client_round": up / max(client_rounds, 1),
        "bytes_total": up + sum(row["bytes_down"] for row in outcome.history),
        "shared_parameters": sum(sizes[name] for name in scope.shared),
        "total_parameters": sum(sizes.values()),
        "seconds": seconds,
        **_privacy_notes(config, outcome),
    }


def _privacy_notes(config: Config, outcome: Outcome) -> Row:
    """Return what limits the ε of the summary: in which sense it holds, and for whom not."""
    notes: Row = {}
    if config.privacy.reproducible_noise:
        notes["privacy_note"] = NOT_PRIVATE
    elif config.privacy.privacy == "client-dp":
        notes["privacy_note"] = MODEL_ONLY
    if outcome.spending.untold:
        notes["epsilon_untold"] = sorted(outcome.spending.untold)
    return notes
