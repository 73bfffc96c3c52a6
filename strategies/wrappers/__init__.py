"""Strategies that wrap a strategy: decoding, checks, the scope, client-level privacy."""
