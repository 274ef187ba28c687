"""Every interleaving of code written against the seam: the machine that finds races.

`search` walks all reachable states, shortest way first; `learn` runs the real code to see what it does next; `world`
says what each of its steps does; `judge` says whether what the clients saw is allowed.
"""
