"""From frames to what an application reads."""
