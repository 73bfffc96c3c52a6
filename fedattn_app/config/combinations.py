"""The checks across keys: settings that exclude each other, and settings without effect.

`COMBINATIONS` is one table of rows (this, that, why, remedy), which the checks, the docs and the
tests read. To refuse another pair of settings, add a row. `CHOOSERS` names the keys whose value
decides which other keys have an effect; the registries behind them say which.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from fedattn_app.config.aggregation import RULES
from fedattn_app.config.data import PARTITIONERS
from fedattn_app.config.model import BUILT_IN_ONLY, LORA_SCOPES, MODEL_SIZES
from fedattn_app.config.privacy import PROTECTIONS
from fedattn_app.config.schema import ConfigValue, as_toml, key_named
from fedattn_app.errors import UserError

Settings = Mapping[str, ConfigValue]  # every run-config key and its value

MAX_NAMES_IN_ERROR = 8


@dataclass(frozen=True)
class Condition:
    """A condition: the key has one of `values` or, with `negated`, none of them."""

    key: str
    values: tuple[ConfigValue, ...]
    negated: bool = False

    def holds(self, settings: Settings) -> bool:
        """Return whether the condition is true for `settings`, the value of each key."""
        return (settings[self.key] in self.values) is not self.negated

    def __str__(self) -> str:
        """Return the condition in Markdown."""
        if self.negated and not self.values:
            return f"any `{self.key}`"
        values = " or ".join(f"`{as_toml(value)}`" for value in self.values)
        return f"`{self.key}` {'other than' if self.negated else '='} {values}"


@dataclass(frozen=True)
class Exceeds(Condition):
    """A condition: the number of the key is greater than that of the key `limit`."""

    limit: str = ""

    def holds(self, settings: Settings) -> bool:
        """Return whether the condition is true for `settings`, the value of each key."""
        number, limit = settings[self.key], settings[self.limit]
        assert not isinstance(number, str)
        assert not isinstance(limit, str)
        return number > limit

    def __str__(self) -> str:
        """Return the condition in Markdown."""
        return f"`{self.key}` above `{self.limit}`"


def equal(key: str, *values: ConfigValue) -> Condition:
    """Return the condition that `key` has one of `values`."""
    return Condition(key, values)


def other_than(key: str, *values: ConfigValue) -> Condition:
    """Return the condition that `key` has none of `values`."""
    return Condition(key, values, negated=True)


def anything(key: str) -> Condition:
    """Return the condition that `key` has any value, which is always true."""
    return Condition(key, (), negated=True)


def exceeds(key: str, limit: str) -> Condition:
    """Return the condition that the number of `key` is greater than that of the key `limit`."""
    return Exceeds(key, (), limit=limit)


@dataclass(frozen=True)
class Combination:
    """Two conditions that must not both be true, unless a third one is.

    `why` is the reason and `remedy` says what to set instead; the error joins them to one sentence.
    """

    this: Condition
    that: Condition
    why: str
    remedy: str
    unless: Condition | None = None

    def refuses(self, settings: Settings) -> bool:
        """Return whether this row refuses `settings`."""
        excused = self.unless is not None and self.unless.holds(settings)
        return self.this.holds(settings) and self.that.holds(settings) and not excused


_SAME_WEIGHT = "with privacy every reply must have the same weight"
_USE_UNIFORM = 'use weighting = "uniform"'
_NO_LATER_SCOPE = "warm-up rounds train parameters that are frozen afterwards"

COMBINATIONS: tuple[Combination, ...] = (
    Combination(
        equal("local", "personal"),
        equal("shared", "all", "lora", "lora-b"),
        "no parameter that is trained stays on the node",
        'share less, for example shared = "attention"',
    ),
    Combination(
        other_than("warmup-rounds", 0),
        equal("shared", "all", *LORA_SCOPES),
        f"{_NO_LATER_SCOPE}, and here there are none",
        "use warmup-rounds = 0",
    ),
    Combination(
        other_than("warmup-rounds", 0),
        equal("local", "personal"),
        _NO_LATER_SCOPE,
        'use warmup-rounds = 0 or local = "frozen"',
    ),
    Combination(
        other_than("warmup-rounds", 0),
        equal("strategy", "fedbuff"),
        "its clients may still train all parameters when fewer are shared",
        "use warmup-rounds = 0 or another strategy",
    ),
    Combination(
        other_than("min-delta", 0.0),
        equal("patience", 0),
        "min-delta does nothing without patience",
        "use patience above 0",
    ),
    Combination(
        equal("weighting", "loss", "effective"),
        equal("privacy", "dp-sgd", "client-dp"),
        _SAME_WEIGHT,
        _USE_UNIFORM,
    ),
    Combination(
        equal("weighting", "examples"), equal("privacy", "client-dp"), _SAME_WEIGHT, _USE_UNIFORM
    ),
    Combination(
        equal("weighting", "examples"),
        equal("privacy", "dp-sgd"),
        _SAME_WEIGHT,
        f"{_USE_UNIFORM} or num-examples-public = true",
        unless=equal("num-examples-public", True),
    ),
    Combination(
        equal("strategy", "fedsgd"),
        equal("privacy", "dp-sgd"),
        "dp-sgd protects updates, and fedsgd collects gradients",
        "use another strategy",
    ),
    Combination(
        equal("strategy", "qfedavg"),
        equal("privacy", "dp-sgd"),
        "qfedavg needs the training loss, which clients do not report with dp-sgd",
        "use another strategy",
    ),
    Combination(
        other_than("strategy", "fedavg"),
        equal("privacy", "client-dp"),
        "its accounting covers only the plain average",
        'use strategy = "fedavg"',
    ),
    Combination(
        equal("local", "personal"),
        equal("strategy", "fedsgd"),
        "with fedsgd clients send a gradient and train no parameters of their own",
        'use local = "frozen"',
    ),
    Combination(
        exceeds("fedbuff-buffer-size", "fedbuff-concurrency"),
        anything("fedbuff-concurrency"),
        "the buffer must not hold more replies than there are clients that train",
        "use fedbuff-buffer-size of at most fedbuff-concurrency",
    ),
    Combination(
        exceeds("min-replies", "fedbuff-buffer-size"),
        equal("strategy", "fedbuff"),
        "a round has no more replies than the buffer holds",
        "use min-replies of at most fedbuff-buffer-size",
    ),
    Combination(
        equal("privacy", "dp-sgd", "client-dp"),
        equal("target-epsilon", 0.0),
        "no amount of noise is given",
        "use target-epsilon or noise-multiplier above 0",
        unless=other_than("noise-multiplier", 0.0),
    ),
    Combination(
        other_than("dropout", 0.0),
        equal("privacy", "dp-sgd"),
        "the contribution of an example must not depend on the other examples",
        "use dropout = 0.0",
    ),
    Combination(
        other_than("evaluate-epsilon", 0.0),
        equal("fraction-evaluate", 0.0),
        "no client evaluates",
        "use fraction-evaluate above 0",
    ),
    Combination(
        other_than("data-path", ""),
        other_than("dataset", "file"),
        "a path is read only for files",
        'use dataset = "file"',
    ),
    Combination(
        equal("partition-by", ""),
        equal("partitioner", "natural"),
        "the data is split by the values of a column",
        "name the column in partition-by",
        unless=equal("dataset", "triage"),
    ),
)


def refuse_combinations(settings: Settings) -> None:
    """Raise `UserError` if a row of `COMBINATIONS` refuses `settings`; the first one counts."""
    for row in COMBINATIONS:
        if row.refuses(settings):
            this, that = row.this.key, row.that.key
            raise UserError(
                f"{this} = {as_toml(settings[this])}: not with {that} = {as_toml(settings[that])}: "
                f"{row.why}; {row.remedy}"
            )


def _owners(
    used: Mapping[str, Collection[str]], unused: Mapping[str, Collection[str]]
) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for name, its_fields in used.items():
        for its_field in its_fields:
            owners.setdefault(key_named(its_field), []).append(name)
    for its_field in {its_field for its_fields in unused.values() for its_field in its_fields}:
        owners[key_named(its_field)] = [
            name for name, its_fields in unused.items() if its_field not in its_fields
        ]
    return owners


# Key → a function that reads the registry of its choices, and returns for each key that depends on
# the choice the names with which it has an effect.
CHOOSERS: Mapping[str, Callable[[], dict[str, list[str]]]] = {
    "strategy": lambda: _owners(
        {name: rule.keywords for name, rule in RULES.items()},
        {name: rule.unused for name, rule in RULES.items()},
    ),
    "partitioner": lambda: _owners({name: row.keys for name, row in PARTITIONERS.items()}, {}),
    "privacy": lambda: _owners({name: row.keys for name, row in PROTECTIONS.items()}, {}),
    "model": lambda: _owners(dict.fromkeys(MODEL_SIZES, BUILT_IN_ONLY), {}),
}


def refuse_unused(settings: Settings, defaults: Settings) -> None:
    """Raise `UserError` for a key that differs from its default and has no effect.

    Args:
        settings: every key of a run and its value.
        defaults: every key and its default.
    """
    for chooser, owners_of in CHOOSERS.items():
        for key, owners in owners_of().items():
            if settings[chooser] in owners or settings[key] == defaults[key]:
                continue
            needed = " or ".join(map(as_toml, owners))
            if len(owners) > MAX_NAMES_IN_ERROR:
                needed = "something else"
            raise UserError(
                f"{key} = {as_toml(settings[key])}: does nothing with {chooser} = "
                f"{as_toml(settings[chooser])}; it needs {chooser} = {needed}"
            )
