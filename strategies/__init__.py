"""What runs on the server: Flower Strategy classes. They know Flower and numpy, nothing else."""

from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from strategies.averaging import FedAdagrad, FedAdam, FedAvgM, FedProx, FedYogi
from strategies.fedatt import FedAtt
from strategies.fedbuff import FedBuff
from strategies.fedsgd import FedSGD
from strategies.geometric_median import GeometricMedian
from strategies.qfedavg import QFedAvg
from strategies.weighted_fedavg import WeightedFedAvg
from strategies.wrappers.attention_only import AttentionOnly
from strategies.wrappers.client_level_dp import ClientLevelDP
from strategies.wrappers.update_checks import UpdateChecks

__all__ = [
    "AttentionOnly",
    "Bulyan",
    "ClientLevelDP",
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
    "QFedAvg",
    "UpdateChecks",
    "WeightedFedAvg",
]
