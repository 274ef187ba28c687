"""The NBD protocol without input or output: bytes in, messages out, for the server and the client alike."""
