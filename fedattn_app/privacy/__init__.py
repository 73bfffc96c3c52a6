"""Differential privacy: protections, accounting, the node's ledger, and private training."""
