"""Strategies around a strategy: the scope, the checks, client-level privacy."""
