"""Checkpoints: find, read, write."""
