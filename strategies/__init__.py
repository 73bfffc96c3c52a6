"""The server's rules, as Flower Strategy classes that depend on Flower and numpy only.

A rule combines the replies of a round into new global arrays. Each module here has one rule, except
that `averaging` has several of Flower's. `common` has the code that rules share. The classes in
`wrappers` wrap a rule, to add a scope, checks, decoding or client-level differential privacy.
"""

from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from strategies.averaging import FedAdagrad, FedAdam, FedAvgM, FedProx, FedYogi
from strategies.fedatt import FedAtt
from strategies.fedbuff import FedBuff
from strategies.fedsgd import FedSGD
from strategies.geometric_median import GeometricMedian
from strategies.qfedavg import QFedAvg
from strategies.weighted_fedavg import WeightedFedAvg
from strategies.wrappers.attention_only import AttentionOnly
from strategies.wrappers.client_level_dp import (
    ClientLevelDP,
    ClippingNormError,
    check_clippable,
    check_clipping_norm,
)
from strategies.wrappers.decoded_replies import DecodedReplies
from strategies.wrappers.update_checks import NormBounds, UpdateChecks

__all__ = [
    "AttentionOnly",
    "Bulyan",
    "ClientLevelDP",
    "ClippingNormError",
    "DecodedReplies",
    "FedAdagrad",
    "FedAdam",
    "FedAtt",
    "FedAvgM",
    "FedBuff",
    "FedMedian",
    "FedProx",
    "FedSGD",
    "FedTrimmedAvg",
    "FedYogi",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "NormBounds",
    "QFedAvg",
    "UpdateChecks",
    "WeightedFedAvg",
    "check_clippable",
    "check_clipping_norm",
]
