"""The folder of a run: writing it during the run, resuming from it, reading it afterwards."""
