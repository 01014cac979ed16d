"""The command line; `engine/__main__.py` is its entry."""
