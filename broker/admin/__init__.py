"""The HTTP interface: what it shows, to whom, and how."""
