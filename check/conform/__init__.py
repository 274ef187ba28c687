"""Other implementations, held to the specification: what any NBD server has to answer."""
