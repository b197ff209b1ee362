"""Benchmarks: scripts, and the results we stand behind with the command that made each."""
