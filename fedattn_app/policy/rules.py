"""Which runs the owner of a node refuses: one rule each, checked before anything is read."""

from collections.abc import Callable, Iterator, Sequence

from fedattn_app.config import Config, as_toml
from fedattn_app.policy.owner_policy import OwnerPolicy
from fedattn_app.policy.reasons import Reason, RefusalError
from fedattn_app.privacy.protections import protection_of

# Returns why a run with these settings is refused, or None if this rule allows it.
Rule = Callable[[Config, OwnerPolicy], RefusalError | None]


def check_owner_allows(config: Config, policy: OwnerPolicy) -> None:
    """Raise `RefusalError` if the node's owner does not allow a run with the settings `config`."""
    for refusal in refusals(config, policy):
        raise refusal


def refusals(config: Config, policy: OwnerPolicy) -> Iterator[RefusalError]:
    """Yield every reason why a node with this `policy` refuses a run with these settings."""
    for rule in RULES:
        if refusal := rule(config, policy):
            yield refusal


def _protection(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    allowed = protection_of(config).protects_on_node or policy.allow_unprotected
    if allowed or not policy.has_secrets:
        return None
    return RefusalError(
        Reason.UNPROTECTED,
        f"privacy = {as_toml(config.privacy.privacy)}: this node has a data-path or a max-epsilon, "
        'so it trains with "dp-sgd" only, unless its owner sets allow-unprotected = true',
    )


def _data(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    from fedattn_app.data.dataset_kinds import kind_of

    if policy.data_path or kind_of(config.data).generated:
        return None
    return RefusalError(
        Reason.DATA,
        f"dataset = {as_toml(config.data.dataset)}, data-path = {as_toml(config.data.data_path)}: "
        "this node reads only what its own node-config names with data-path",
    )


def _model(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    if policy.model_path or not config.model.pretrained:
        return None
    return RefusalError(
        Reason.MODEL,
        f"model = {as_toml(config.model.model)}: this node needs a model-path in its node-config, "
        "the folder or hub id of the model that its owner trusts",
    )


def _reproducible_noise(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    if not (_spends(config, policy) and config.privacy.reproducible_noise):
        return None
    return RefusalError(
        Reason.REPRODUCIBLE_NOISE,
        "reproducible-noise = true: protects nobody; this node has a data-path or a max-epsilon",
    )


def _delta(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    if not _spends(config, policy) or config.privacy.target_delta <= policy.max_delta:
        return None
    return RefusalError(
        Reason.DELTA,
        f"target-delta = {config.privacy.target_delta:g}: this node has "
        f"max-delta = {policy.max_delta:g}",
    )


def _state_dir(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    if not _spends(config, policy) or policy.state_dir:
        return None
    return RefusalError(
        Reason.STATE_DIR,
        f"privacy = {as_toml(config.privacy.privacy)}: this node has no state-dir in its "
        "node-config, where its privacy ledger would survive a restart",
    )


def missing_state(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    """Return why a run cannot be resumed: it needs what only a `state-dir` keeps.

    This rule also holds for simulated nodes.
    """
    kept = protection_of(config).kept_by_clients
    if not (config.output.resume_from and kept) or policy.state_dir:
        return None
    return RefusalError(
        Reason.NOT_KEPT, f"resume-from: this node has no state-dir and so no {kept} of that run"
    )


def _length(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    return _above(
        Reason.LENGTH, "max-length", config.model.max_length, "max-tokens", policy.max_tokens
    )


def _size(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    if config.model.pretrained:  # the owner has chosen it
        return None
    from fedattn_app.models.factory import num_parameters

    labels = len(config.data.label_names) or 1
    size = num_parameters(config.model, labels)
    return _above(Reason.SIZE, "parameters", size, "max-parameters", policy.max_parameters)


def _epochs(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    epochs, limit = config.training.local_epochs, policy.max_local_epochs
    return _above(Reason.EPOCHS, "local-epochs", epochs, "max-local-epochs", limit)


def _batch(config: Config, policy: OwnerPolicy) -> RefusalError | None:
    training = config.training
    size = max(training.batch_size, training.physical_batch_size)
    return _above(Reason.BATCH, "batch-size", size, "max-batch-size", policy.max_batch_size)


def _above(reason: Reason, key: str, value: int, limit_key: str, limit: int) -> RefusalError | None:
    if value <= limit:
        return None
    return RefusalError(reason, f"{key} = {value}: this node has {limit_key} = {limit}")


def _spends(config: Config, policy: OwnerPolicy) -> bool:
    """Return whether the run spends privacy on examples that are somebody's."""
    return policy.has_secrets and protection_of(config).protects_on_node


RULES: Sequence[Rule] = (
    *(_protection, _data, _model, _reproducible_noise, _delta, _state_dir, missing_state),
    *(_length, _size, _epochs, _batch),
)
