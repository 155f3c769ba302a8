"""Who a session is, and what it may do. Pure, but for modules that say otherwise."""
