"""The synthetic suite: small Python tasks without end, made from a table of operations and split by composition."""
