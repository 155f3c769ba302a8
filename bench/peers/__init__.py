"""Other messaging systems as contestants, each with its official Python client and set up to be at its best."""
