"""Examines a tokenizer and a dataset before training starts. Every check returns `findings.Finding`s.

`tokenizers` examines a tokenizer with its chat template, and `examples` a tokenised dataset. Sound inputs give at most
notes.
"""
