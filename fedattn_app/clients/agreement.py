"""What a client compares with the server before it uses a message, and with its own past.

Without these checks a client whose labels, tokenizer, data or frozen parameters are others would
train and score without a word, and the result would mean nothing.
"""

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict
from flwr.common import Scalar

from fedattn_app.errors import UserError
from fedattn_app.policy.reasons import Reason, RefusalError
from fedattn_app.run_identity import RunIdentity

# Which one is named first if several differ: changed data often bring other labels, and other
# labels another head.
REASONS: Mapping[str, Reason] = {
    "data-fingerprint": Reason.CHANGED_DATA,
    "labels-fingerprint": Reason.LABELS,
    "tokenizer-fingerprint": Reason.TOKENIZER,
    "frozen-fingerprint": Reason.FROZEN,
}

_OWN_DATA = "own-data"


class MismatchError(RefusalError):
    """Raised if something that must be the same differs between this client and the server."""


def check_agreement(config: Mapping[str, Scalar], own: RunIdentity) -> None:
    """Raise `MismatchError` if a fingerprint in `config` differs from the client's `own`.

    What either of the two does not have is not compared.
    """
    here = own.to_message_config()
    for key, reason in REASONS.items():
        if config.get(key, here.get(key)) != here.get(key, config.get(key)):
            raise MismatchError(reason)


def check_own_data(state: RecordDict, run: int, path: str, fingerprint: str) -> None:
    """Raise `UserError` if the node's own data have changed since its first message of the run.

    Other rows would be held out then, among them some that the model was trained on. Nothing is
    compared between runs. Flower may give several runs one state, and each names the columns that
    are read: whether two columns are equal is for no run to know.

    Args:
        state: Flower's state of this node, where the first call for `run` keeps `fingerprint`.
        run: Flower's id of the run.
        path: the `data-path` of the node, for the error text.
        fingerprint: the SHA-256 (hex) of the rows as they are now.
    """
    name = f"{_OWN_DATA}-{run}"
    record = state.config_records.setdefault(name, ConfigRecord({"sha256": fingerprint}))
    if record["sha256"] != fingerprint:
        raise UserError(
            f"data-path = {path}: has changed since this node's first message of the run; put it "
            "back as it was, or wait for the next run"
        )
