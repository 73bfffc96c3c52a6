"""Local training of one client, and evaluation."""
