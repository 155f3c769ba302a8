"""The tensorbus broker."""
