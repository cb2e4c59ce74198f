"""The `itemwise` command."""
