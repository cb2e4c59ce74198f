"""Attention of packed sequences: one meaning, several backends."""
