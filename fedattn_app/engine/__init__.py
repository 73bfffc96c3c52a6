"""The local simulation engine: a Flower `Grid` that runs its nodes in worker processes."""
