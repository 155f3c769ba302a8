"""Requests and their replies, at both ends."""
