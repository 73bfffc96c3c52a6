"""What the rules share: reading replies, averaging arrays, weights, state."""
