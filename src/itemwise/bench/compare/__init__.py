"""Itemwise compared with other ways to score the same items."""
