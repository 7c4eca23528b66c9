"""Training runs: data, the two loops, checkpoints and the command line."""
