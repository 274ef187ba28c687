"""Three algorithms for one device, as code: what was before the review, what it allowed, and what is right.

They are written from the description, against a seam (`seam.py`), and are explored as the shipped overlay is.
"""
