"""A history, or a counterexample of the explorer, as one self-contained page: `cowproof view`.

page.py      what is shown, to the text of a page; viewer.html, viewer.css and viewer.js are its template
columns.py   a history in compact columns
finding.py   the verdict that is shown with it, and where each request takes effect
partial.py   how far any order of the conflicting requests gets
story.py     a schedule of the explorer as a history with steps
command.py   options, exit statuses
"""
