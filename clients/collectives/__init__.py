"""Groups of ranks: operations on a board, over links or through the broker."""
