"""The local simulation engine: Flower's Grid on this machine, over worker processes."""
