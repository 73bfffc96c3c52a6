"""What runs on the server: Flower Strategy classes. They know Flower and numpy, nothing else."""

from strategies.attention_only import AttentionOnly
from strategies.client_level_dp import ClientLevelDP
from strategies.weighted_fedavg import WeightedFedAvg

__all__ = ["AttentionOnly", "ClientLevelDP", "WeightedFedAvg"]
