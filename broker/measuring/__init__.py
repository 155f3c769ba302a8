"""How messages are timed and checked: what `tensorbus bench` and the repository's benchmarks have in common."""
