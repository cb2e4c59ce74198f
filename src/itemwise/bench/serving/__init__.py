"""Load on a server: its answers, speed and stability."""
