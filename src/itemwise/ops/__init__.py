"""Array operations that the decoder is made of."""
