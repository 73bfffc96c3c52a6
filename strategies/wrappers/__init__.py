"""Strategies around a strategy: decoding, checks, the scope, client-level privacy."""
