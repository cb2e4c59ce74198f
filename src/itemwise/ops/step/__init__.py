"""Attention of the exact step: one meaning, several backends."""
