"""Pages that are generated from docstrings."""
