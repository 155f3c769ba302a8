"""Trains a classifier of handwritten digits through the broker, in three ways; see README.md."""
