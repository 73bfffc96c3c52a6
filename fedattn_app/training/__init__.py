"""One client's local training, and evaluation anywhere."""
