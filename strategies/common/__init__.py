"""What several rules share: replies, arrays, weights."""
