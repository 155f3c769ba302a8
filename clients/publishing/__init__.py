"""From what an application publishes to frames."""
