"""TPUs without a TPU: compile for them, and what they would take at least."""
