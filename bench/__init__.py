"""Benchmarks of tensorbus beside its peers. README.md has the method; run with `python -m bench`."""
