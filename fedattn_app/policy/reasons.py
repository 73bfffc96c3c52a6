"""The sentences with which a real node refuses or fails: nothing else about an error leaves it.

A text that names a value, a file or a column would let the person who starts a run read the node's
files, one error at a time. So the server gets one of these sentences, and the details are written
to the log of the node.
"""

from enum import StrEnum
from typing import Self

from fedattn_app.errors import UserError


class Reason(StrEnum):
    """Why a node does not do what a message asks for."""

    # The owner does not allow the run.
    UNPROTECTED = (
        'this node trains only with privacy = "dp-sgd", because its owner has not allowed anything '
        "else"
    )
    DATA = "this node reads no data that a run names; its owner names them in its node-config"
    MODEL = (
        "this node loads no pretrained model that a run names; its owner names it with model-path"
    )
    REPRODUCIBLE_NOISE = "this node refuses reproducible-noise, which protects nobody"
    DELTA = "target-delta is above the max-delta of this node"
    STATE_DIR = "this node has no usable state-dir, where its privacy ledger would be kept"
    LENGTH = "max-length is above what the owner of this node allows"
    SIZE = "the model is larger than the owner of this node allows"
    EPOCHS = "local-epochs is above what the owner of this node allows"
    BATCH = "batch-size or physical-batch-size is above what the owner of this node allows"
    SPENT = 'this node has spent privacy on its examples, so it trains only with privacy = "dp-sgd"'
    NOT_KEPT = "resume-from: this node has no state-dir and so has kept nothing of that run"

    # Something differs between the node and the server, or between now and before.
    CHANGED_DATA = (
        "the training data of this client are not those that the server split when the run began: "
        "put the files back as they were, or start a new run"
    )
    LABELS = "the labels of this client differ from the server's in name or order"
    TOKENIZER = (
        "the tokenizer of this client differs from the server's: model or model-path must name the "
        "same model on both"
    )
    FROZEN = (
        "the frozen parameters of this node differ from the server's: both need the same settings "
        "and version of fedattn, for a pretrained model also the same weights and transformers, "
        "and for LoRA the same peft"
    )
    SHARED = "the server shares other parameters than this node"

    # The node cannot do it.
    NODE_CONFIG = "the node-config of this node has a mistake; its own log says which"
    RUN_CONFIG = "this node cannot use the run-config; its own log says why"
    LOAD_MODEL = "this node cannot load the model; its own log says why"
    USE_DATA = "this node cannot use its data-path; its own log says why"
    LEDGER = "this node cannot use its privacy ledger; its own log says why"
    TRAIN_PRIVATELY = "this node cannot train with these privacy settings; its own log says why"
    ANSWER = "this node cannot answer; its own log says why"


class RefusalError(UserError):
    """A node does not do what a message asks for.

    Args:
        reason: what the server may know.
        detail: what else there is to know, for the log of the node; by default nothing.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or str(reason))
        self.reason = reason

    @classmethod
    def because_of(cls, error: Exception, reason: Reason) -> Self:
        """Return an error with this `reason` whose text, for the node's log, is that of `error`."""
        return cls(reason, str(error) if isinstance(error, UserError) else repr(error))
