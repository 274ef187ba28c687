"""What the algorithms are: in TLA+ and in Python beside it, the same variables, actions and names; and to be explored."""
