"""Prepare what a run needs before its first message, and check what can be checked by then."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedattn_app.config import Config, TrainingConfig
from fedattn_app.data.dataset_kinds import kind_of
from fedattn_app.data.doubtful_labels import log_doubtful_labels
from fedattn_app.data.examples import Examples
from fedattn_app.data.labels import label_names, list_labels
from fedattn_app.data.loading import (
    data_fingerprints,
    examples_per_client,
    server_has_data,
    server_test_set,
)
from fedattn_app.errors import UserError
from fedattn_app.metrics import Scores
from fedattn_app.models.classifier import Classifier
from fedattn_app.models.factory import build_classifier, build_tokenizer
from fedattn_app.models.parameters import fingerprint, set_arrays, view_arrays, without
from fedattn_app.models.scopes import Scope, scope_of
from fedattn_app.privacy.protections import Protection
from fedattn_app.results.resume import EarlierRun
from fedattn_app.run_identity import RunIdentity
from fedattn_app.server.quorum import Quorum
from fedattn_app.training.evaluation import evaluate
from fedattn_app.types import NDArray

# A single node may report any number of splits; to count the examples of so many takes too long.
MAX_CHECKED_SPLITS = 100_000

log = logging.getLogger("fedattn")


@dataclass(frozen=True)
class Setup:
    """The model of a run, its labels, its test set, and which parameters travel.

    Attributes:
        labels: the label names, in the order of the model's outputs.
        model: the classifier; `score` copies the arrays to be scored into it.
        scope: which parameters are shared, personal and frozen.
        test: the server's test set; None if there is none, or if the server has no complete model.
        identity: what must be the same in every round and on every node.
    """

    labels: tuple[str, ...]
    model: Classifier
    scope: Scope
    test: Examples | None
    identity: RunIdentity

    @property
    def arrays(self) -> dict[str, NDArray]:
        """The model's parameters by name, without copying."""
        return view_arrays(self.model)

    def score(self, arrays: Mapping[str, NDArray]) -> Scores:
        """Return the scores of the model with these `arrays` on the test set."""
        assert self.test is not None
        set_arrays(self.model, arrays)
        return evaluate(self.model, self.test, len(self.labels))


def prepare(config: Config) -> Setup:
    """Build the model and load the test set; raises `UserError` if that is not possible."""
    labels = label_names(config.data)
    if len(labels) < 2:
        named = f": {list_labels(labels)}" * bool(labels)
        raise UserError(f"labels: a classifier needs at least 2, there are {len(labels)}{named}")
    federation = config.federation
    test = server_test_set(config.data, config.model, federation.seed)
    if federation.local == "personal" and test is not None:
        log.info("personal parameters: the clients evaluate, the server has no whole model to test")
        test = None
    model = _build_classifier(config, labels)
    scope = scope_of(federation.shared, federation.local, model.family, view_arrays(model))
    frozen = without(view_arrays(model), scope.trainable)
    identity = RunIdentity(
        labels,
        fingerprint(frozen) if frozen else "",
        build_tokenizer(config.model).fingerprint,
        *data_fingerprints(config.data, federation.seed),
    )
    return Setup(labels, model, scope, test, identity)


def restore(setup: Setup, changeable: frozenset[str], earlier: EarlierRun) -> None:
    """Set the model's parameters to those of the `earlier` run's checkpoint, if there is one.

    Raises `UserError` for a checkpoint that does not hold exactly the `changeable` parameters.
    """
    if earlier.path is None:
        return
    try:
        if different := sorted(changeable ^ earlier.arrays.keys()):
            raise ValueError(f"it differs in {', '.join(different)}")
        set_arrays(setup.model, earlier.arrays)
    except ValueError as error:
        raise UserError(
            f"resume-from = {earlier.path}: the checkpoint does not fit ({error})"
        ) from None


def check_patience(config: Config, protection: Protection, server_tests: bool) -> None:
    """Raise `UserError` if `patience` is set but no score is reported after each round."""
    federation = config.federation
    in_every_round = config.aggregation.strategy != "fedbuff"
    clients_report = in_every_round and protection.reports_score(federation.score)
    if federation.patience and not server_tests and not clients_report:
        raise UserError(
            f"patience = {federation.patience}: nothing reports the {federation.score} after each "
            "round: the server has no test set, and the clients do not report it"
        )


def check_num_clients(
    config: Config,
    protection: Protection,
    earlier: EarlierRun,
    quorum: Quorum,
    num_partitions: int,
) -> None:
    """Raise `UserError` for settings that do not suit the number of clients.

    Args:
        config: the settings of the run.
        protection: the protection of the run.
        earlier: the run that this one resumes.
        quorum: the number of clients that are connected, and how many of them must reply.
        num_partitions: the number of clients that the data are split over, as the nodes report it.
    """
    split_over = earlier.num_partitions
    if server_has_data(config.data) and split_over not in (0, num_partitions):
        raise UserError(
            f"{num_partitions} clients: the run to resume split its data over {split_over}; give "
            f"--num-supernodes {split_over}"
        )
    settings, num_clients = config.aggregation, quorum.num_clients
    if settings.strategy == "fedbuff" and settings.fedbuff_buffer_size > num_clients:
        raise UserError(
            f"fedbuff-buffer-size = {settings.fedbuff_buffer_size}: must be at most the number of "
            f"clients = {num_clients}, each of which answers once per step"
        )
    quorum.check()
    protection.check_num_clients(num_clients)


def check_examples(
    config: Config, protection: Protection, setup: Setup, quorum: Quorum, num_splits: int
) -> None:
    """Raise `UserError` if clients of a simulation have too few examples; log what few mean.

    Args:
        config: the settings of the run.
        protection: the protection of the run.
        setup: the test set.
        quorum: how many clients must reply.
        num_splits: the number of clients that split the data set of the run; 0: it is not known
            what data the nodes have.
    """
    if not 0 < num_splits <= MAX_CHECKED_SPLITS or not server_has_data(config.data):
        return
    examples = examples_per_client(config.data, config.federation.seed, num_splits)
    num_training = sum(trained > 0 for trained, _ in examples)
    needed = 1 if protection.server_accounts else quorum.of_updates()
    if num_training < needed:
        raise UserError(
            f"{num_splits} clients: this split of the data set gives examples to {num_training} "
            f"of them, and {needed} are needed ({quorum.reason()})"
        )
    protection.check_examples(examples, needed)
    if num_training < num_splits:
        log.warning(
            "%d of %d clients have no examples, and train nothing",
            num_splits - num_training,
            num_splits,
        )
    if setup.test is None and protection.fraction_evaluate:
        _log_held_out(config, [held_out for _, held_out in examples], quorum)


def _log_held_out(config: Config, held_out: Sequence[int], quorum: Quorum) -> None:
    """Log how many clients hold out no examples, so that they have no score.

    Raises `UserError` if `patience` waits for scores that can never be there.
    """
    fraction, num_clients = config.data.validation_fraction, len(held_out)
    num_without = sum(number == 0 for number in held_out)
    if not num_without:
        return
    enough = num_clients - num_without >= quorum.of_scores(0)
    if config.federation.patience and not enough:
        raise UserError(
            f"patience = {config.federation.patience}: needs scores after each round, and "
            f"{num_without} of {num_clients} clients hold out no examples at "
            f"validation-fraction = {fraction:g}"
        )
    too_few = f"have fewer than {math.ceil(1 / fraction)} examples and " if fraction else ""
    log.warning(
        "%d of %d clients %shold out none at validation-fraction = %g%s",
        num_without,
        num_clients,
        too_few,
        fraction,
        "" if enough else "; the run has no scores, and accuracy stays null",
    )


def log_plan(config: Config, protection: Protection, setup: Setup) -> None:
    """Log the main settings of the run, and warnings about them."""
    arrays, federation = setup.arrays, config.federation
    num_shared = sum(arrays[name].size for name in setup.scope.shared)
    total = sum(array.size for array in arrays.values())
    warmup = f", after {federation.warmup_rounds} rounds of all" * bool(federation.warmup_rounds)
    log.info(
        "%s: %d labels (%s)%s; %s model; %s shares %s: %s of %s parameters%s",
        config.data.dataset,
        len(setup.labels),
        list_labels(setup.labels),
        _number_of_rows(config, setup),
        config.model.model,
        config.aggregation.strategy,
        federation.shared,
        f"{num_shared:,}",
        f"{total:,}",
        warmup,
    )
    log_doubtful_labels(config.data, setup.labels)
    for level, message in setup.model.load_messages:
        log.log(level, "%s", message)
    protection.announce()
    if config.model.pretrained and config.training.learning_rate == TrainingConfig.learning_rate:
        log.warning(
            "learning-rate = %g suits the built-in model; for a pretrained one try 2e-3 for "
            "adapters or the head, 5e-4 for attention, 2e-4 for all",
            TrainingConfig.learning_rate,
        )


def _number_of_rows(config: Config, setup: Setup) -> str:
    """Return how many rows the server has read, as a part of a log line."""
    num_training = len(kind_of(config.data).training_labels(config.data))
    test = "" if setup.test is None else f", {len(setup.test):,} for testing"
    return f"; {num_training:,} training rows{test}" if num_training else ""


def _build_classifier(config: Config, labels: tuple[str, ...]) -> Classifier:
    try:
        return build_classifier(config, labels)
    except RuntimeError as error:  # torch raises it where memory does not suffice
        reason = str(error).splitlines()[0]
        raise UserError(f"model = {config.model.model!r}: cannot be built ({reason})") from None
