"""Wire formats: one module each, from a body to a call and from its result to a body."""
