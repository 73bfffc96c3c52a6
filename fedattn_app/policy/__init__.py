"""What the owner of a real node allows, and what may leave it."""
