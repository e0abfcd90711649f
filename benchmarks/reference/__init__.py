"""Training of the reference models that the package carries. See `python -m benchmarks.reference --help`."""
