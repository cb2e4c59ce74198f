"""Decisions: typed questions about one shared state, and the probability of each answer."""
