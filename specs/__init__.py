"""Specifications: algorithms written down to be explored."""
