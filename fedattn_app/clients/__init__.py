"""Flower NumPyClient subclasses, and what a node keeps and allows."""
