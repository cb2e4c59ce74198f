"""Load on a server: what it answers, how fast, for how long."""
