"""What we ship: bases, the overlay, the NBD protocol, server and client."""

__version__ = "0.1.0"
