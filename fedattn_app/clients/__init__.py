"""Flower NumPyClient subclasses, the state that a node keeps, and what its owner allows."""
