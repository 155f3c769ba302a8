"""Clients of a broker whose topics are spread over several workers (docs/decisions/0038-workers.md)."""
