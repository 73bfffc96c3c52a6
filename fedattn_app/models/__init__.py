"""Classifiers and their tokenizers, and the parameters that each scope selects."""
