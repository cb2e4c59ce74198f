"""Itemwise beside other ways to score the same items."""
