"""A demonstration on the machine at hand: writes that nbdkit's cow filter and qemu-nbd lose, and this server keeps."""
