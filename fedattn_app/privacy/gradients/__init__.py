"""Sums of clipped per-example gradients: the part of DP-SGD that depends on the model."""
