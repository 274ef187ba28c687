"""What we ship: bases, the overlay, the NBD protocol, server and client."""
