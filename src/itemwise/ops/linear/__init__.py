"""Matrix products: one meaning, several backends."""
