"""Other ways to run the same federation, for `benchmarks/simulation.py`.

The `race` function of each module trains a `Task` as the documentation of its framework shows it.
All use the same model, examples and optimizer, and the fused optimizer step where they can.
"""
