"""Decoders as pure functions over weights."""
