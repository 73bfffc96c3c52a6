"""A run's folder: written as the run goes, resumed from, and read back."""
