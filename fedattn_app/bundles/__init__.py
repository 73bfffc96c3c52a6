"""The bundles of code that a node's owner approves, and the check that a node makes of each run."""
