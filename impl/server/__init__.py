"""The NBD server: sockets, threads, command line."""
