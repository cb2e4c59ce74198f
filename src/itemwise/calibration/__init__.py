"""Calibration: temperature and label prior from labelled decisions, and how good they make them."""
