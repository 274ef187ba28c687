"""An NBD client in pure Python."""
