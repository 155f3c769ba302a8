"""How a client is connected and driven: the core that both clients share, and the link under it."""
