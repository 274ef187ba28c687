"""A demonstration on the machine at hand: writes that nbdkit's cow filter loses, and that the server here does not."""
