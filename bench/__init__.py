"""Measurements: always ratios to a peer in the same run, never a test's assertion."""
