"""Other ways to run the same federation, for `benchmarks/simulation.py`.

Each module's `race` trains a `Task` as the documentation of its framework shows it, and with the
same model, examples, optimizer and, where it may choose, the fused optimizer step.
"""
