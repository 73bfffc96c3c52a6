"""Classifiers, their inputs and tokenizers, and the choice of parameters that travel."""
