"""Example-level differential privacy on a node: what is spent, drawn, clipped and trained."""
