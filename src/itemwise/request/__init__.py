"""Raw request fields to a checked request in token ids."""
