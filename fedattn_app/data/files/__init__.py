"""Data files: which files make up a split, and readers of each format."""
