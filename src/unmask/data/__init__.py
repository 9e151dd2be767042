"""Tasks, the files that they come from, and what training data shares with them."""
