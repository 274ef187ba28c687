"""The copy-on-write device: states, range locks, stores, and the algorithm that puts them together."""
