"""What a node's owner has written into its node-config, or into a policy file that it names."""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from flwr.app.user_config import UserConfig

from fedattn_app.config.schema import Section, as_toml, key_of, setting
from fedattn_app.errors import UserError
from fedattn_app.files import check_only_owner_writes, user_path
from fedattn_app.policy.reasons import Reason, RefusalError
from fedattn_app.privacy.privacy_filter import PrivacyFilter

FLOWER_KEYS = {"partition-id", "num-partitions"}  # Flower sets them on simulated nodes
LEDGER_NAME = re.compile(r"[\w-]+")
NO_LIMIT = 2**63 - 1
DEFAULT_MAX_DELTA = 1e-5
# Without it, a run could call itself private and add next to no noise. Ponomareva et al., "How to
# DP-fy ML", 2023, arXiv 2303.00654, section 5.2, call larger values weak.
DEFAULT_MAX_EPSILON = 10.0


@dataclass(frozen=True)
class OwnerPolicy(Section):
    """The files of a node, and what its owner allows a run to do with them.

    Raises `UserError` for a value that is not allowed.
    """

    title: ClassVar[str] = "What a node's owner sets"

    data_path: str = setting(
        "", "the node's private file, or a folder with `train.*` and, to hold out, `test.*`"
    )
    state_dir: str = setting(
        "",
        "folder for the privacy ledger and personal parameters, as an absolute path; `dp-sgd` "
        "needs it",
    )
    model_path: str = setting(
        "",
        "folder or hub id of the pretrained model to use in place of the one that a run names; "
        "without it the node trains no pretrained model",
    )
    ledger: str = setting(
        "privacy-ledger", "name of the privacy ledger in `state-dir`; use a new one for new data"
    )
    allow_unprotected: bool = setting(
        False,
        "whether runs without `dp-sgd` may train on the node's file: what they send can be turned "
        "back into text",
    )
    max_epsilon: float = setting(
        0.0,
        "maximum ε of all runs together, at δ = `max-delta`; unset: 10, or no maximum with "
        "`allow-unprotected`",
        minimum=0,
    )
    max_delta: float = setting(
        DEFAULT_MAX_DELTA,
        "the δ of `max-epsilon`, and the largest `target-delta` of a run; keep it below 1 / the "
        "number of examples",
        above=0,
        maximum=0.999,
    )
    max_tokens: int = setting(
        NO_LIMIT,
        "largest `max-length` of a run; how long a node takes tells of long texts",
        minimum=1,
    )
    max_parameters: int = setting(
        10**9, "largest number of parameters of a built-in model", minimum=1
    )
    max_local_epochs: int = setting(100, "largest `local-epochs` of a run", minimum=1)
    max_batch_size: int = setting(
        NO_LIMIT, "largest `batch-size` and `physical-batch-size` of a run", minimum=1
    )
    reply_every: float = setting(
        0.0,
        "replies leave the node a multiple of this many seconds after the message came, so that "
        "the time tells less; choose more than a round takes; 0: at once",
        minimum=0,
        maximum=3600,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not LEDGER_NAME.fullmatch(self.ledger):
            raise UserError(f"ledger = {self.ledger!r}: must be a name of letters, digits, - and _")
        if self.state_dir and not Path(self.state_dir).expanduser().is_absolute():
            raise UserError(
                f"state-dir = {self.state_dir}: must be an absolute path, so that this node finds "
                "its privacy ledger wherever it is started"
            )
        # Every message makes a policy, queries included, so nothing is searched for here.
        if self.max_epsilon and PrivacyFilter(self.max_epsilon, self.max_delta).is_too_small:
            raise UserError(
                f"max-epsilon = {self.max_epsilon:g}: too small for any noise at max-delta = "
                f"{self.max_delta:g}; raise one of them"
            )
        if self.max_epsilon and self.allow_unprotected:
            raise UserError(
                f"allow-unprotected = true: contradicts max-epsilon = {self.max_epsilon:g}, which "
                "bounds everything that leaves this node; remove one of them"
            )

    @classmethod
    def of_node(cls, node: UserConfig) -> Self:
        """Return the policy of the node with the node-config `node`.

        Raises `RefusalError` for a misspelled key, a value that is not allowed, a policy file that
        cannot be used, and a key that is in both. Other unknown keys of the node-config are
        ignored, because they may belong to another app.
        """
        try:
            given = {key: value for key, value in node.items() if key in OWNER_KEYS}
            for key in node.keys() - NODE_KEYS:
                if near := _nearest(key):
                    raise UserError(f"node-config has {key}: did you mean {near}?")
            if "policy" in node:
                in_file = read_policy(str(node["policy"]))
                if twice := sorted(given.keys() & in_file):
                    raise UserError(
                        f"{twice[0]}: is in node-config and in policy = {node['policy']}; keep one"
                    )
                given |= in_file
            return cls.from_keys(given)
        except UserError as error:
            raise RefusalError(Reason.NODE_CONFIG, str(error)) from None

    @classmethod
    def from_keys(cls, given: Mapping[str, Any]) -> Self:
        """Return the policy with the values `given` by key; raises `UserError`."""
        for key in ("data-path", "state-dir", "model-path"):
            if given.get(key) == "":
                raise UserError(f'{key} = "": must not be empty; leave it out')
        if "max-epsilon" in given and given["max-epsilon"] in (0, False):
            raise UserError(f"max-epsilon = {as_toml(given['max-epsilon'])}: must be above 0")
        return cls(**{key.replace("-", "_"): value for key, value in given.items()})

    @property
    def has_secrets(self) -> bool:
        """Whether the node has a file of its own or a limit on ε."""
        return bool(self.data_path or self.max_epsilon)

    @property
    def epsilon_limit(self) -> float:
        """The maximum ε of all runs together; infinite if there is none."""
        if self.max_epsilon:
            return self.max_epsilon
        return math.inf if self.allow_unprotected or not self.data_path else DEFAULT_MAX_EPSILON

    @property
    def ledger_path(self) -> Path | None:
        """The path of the privacy ledger, or None for a node without `state-dir`.

        Raises `UserError` if `state-dir` is not a usable path.
        """
        folder = self.state_folder
        return folder / f"{self.ledger}.json" if folder else None

    @property
    def state_folder(self) -> Path | None:
        """The folder `state-dir`, or None; raises `UserError` if it is not a usable path."""
        return user_path("state-dir", self.state_dir) if self.state_dir else None


OWNER_KEYS = {key_of(entry) for entry in fields(OwnerPolicy)}
NODE_KEYS = OWNER_KEYS | FLOWER_KEYS | {"policy"}


def read_policy(text: str) -> dict[str, Any]:
    """Return the keys and values of the policy file with the path `text`.

    It is a TOML file with the keys of `OwnerPolicy`. Raises `UserError` for a file that cannot be
    read or that other users can write to, and for an unknown key.
    """
    path = user_path("policy", text)
    try:
        status = path.stat()  # of the file itself: a link to it may be anywhere
        check_only_owner_writes(path, status)
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"policy = {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"policy = {path}: not a TOML file ({error})") from None
    for key in table.keys() - OWNER_KEYS:
        near = _nearest(key)
        hint = f"did you mean {near}?" if near else f"the keys are {', '.join(sorted(OWNER_KEYS))}"
        raise UserError(f"policy = {path}: {key} is no key of a policy; {hint}")
    return table


def _nearest(key: str) -> str:
    return next(iter(difflib.get_close_matches(key, NODE_KEYS, n=1, cutoff=0.8)), "")
