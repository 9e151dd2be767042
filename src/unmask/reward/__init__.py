"""Rewards: what an answer is worth, by executed tests, by its form, or by a user's own function."""
