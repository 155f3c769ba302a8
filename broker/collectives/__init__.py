"""Collectives: groups, operations and reductions. Pure: no input or output, no clock."""
