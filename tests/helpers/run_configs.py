"""Run-configs for one key: another value than its default, and what that value needs."""

from fedattn_app.config import PROTECTIONS
from fedattn_app.config.combinations import CHOOSERS, Exceeds
from fedattn_app.config.settings import DEFAULTS, SETTINGS

# Where another value cannot be derived from the default.
EXAMPLES = {
    "shared": "attention",
    "model": "someone/some-model",
    "width": 256,
    "lora-targets": "query,value",
    "dataset": "someone/some-set",
    "labels": "no,yes",
    "label-shares": "10/90",
}
# What a key needs to have an effect, besides the choices of `CHOOSERS`.
NEEDS = {"min-delta": {"patience": 1}, "data-path": {"dataset": "file"}}


def other_value(key):
    """An allowed value that is not the default."""
    default, constraint = DEFAULTS[key], SETTINGS[key].constraint
    if key in EXAMPLES:
        return EXAMPLES[key]
    if constraint.names:
        return next(name for name in constraint.names if name != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return "something"
    steps = (1,) if isinstance(default, int) else (1.0, 0.05, -0.05)
    return next(default + step for step in steps if constraint.allows(default + step))


def choose(chooser, name):
    """The run-config that chooses `name`, with what that needs."""
    has_budget = chooser == "privacy" and "noise_multiplier" in PROTECTIONS[name].keys
    budget = {"noise-multiplier": 1.0} if has_budget else {}
    return {**budget, chooser: name}


def needed(key, value):
    """A run-config with which `value` is accepted for `key`, and has an effect."""
    config = dict(NEEDS.get(key, {})) if value != DEFAULTS[key] else {}
    for chooser, owners_of in CHOOSERS.items():
        owners = owners_of().get(key)
        if owners and value != DEFAULTS[key] and DEFAULTS[chooser] not in owners:
            config |= choose(chooser, owners[0])
    return config | choose(key, value)


def values_within(condition):
    """Values of the condition's key with which it holds."""
    if isinstance(condition, Exceeds):
        return [DEFAULTS[condition.limit] + 1]
    if not condition.negated:
        return list(condition.values)
    if not condition.values:
        return [DEFAULTS[condition.key]]
    return [value for value in _candidates(condition.key) if value not in condition.values]


def value_outside(condition):
    """A value of the condition's key with which it does not hold; None where it always holds."""
    if isinstance(condition, Exceeds):
        return DEFAULTS[condition.limit]
    if condition.negated:
        return next(iter(condition.values), None)
    return next(value for value in _candidates(condition.key) if value not in condition.values)


def _candidates(key):
    names = SETTINGS[key].constraint.names
    return [DEFAULTS[key], *(name for name in names or [other_value(key)] if name != DEFAULTS[key])]
