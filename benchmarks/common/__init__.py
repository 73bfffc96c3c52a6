"""What several benchmarks share: the results format, sweeps over runs, tables and measurements."""
