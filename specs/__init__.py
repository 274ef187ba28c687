"""What the algorithms are: in TLA+ and, beside it, in Python, with the same names; and as code to be explored."""
