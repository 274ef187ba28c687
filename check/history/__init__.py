"""Histories: recorded from any NBD server, written and read as JSON Lines, and handed to the model's checker."""
