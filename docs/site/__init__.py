"""The site: staged in build/docs/source, and built from there by Sphinx."""
