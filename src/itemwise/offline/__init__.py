"""Scoring without a server: rows of files or of other batches, in and out."""
