"""Classifiers, their inputs and tokenizers, and which of their parameters travel."""
