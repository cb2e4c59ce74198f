"""The engine: one model on one device, ready to score."""
