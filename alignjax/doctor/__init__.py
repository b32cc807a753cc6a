"""Examines a run before it trains: one module for each subject. Every check returns `findings.Finding`s.

  tokenizers    a tokenizer, with its chat template and generation settings
  examples      a tokenised dataset
  batches       batch shapes and padding
  declarations  what the objective declares
  start         policy and reference at the first batch
  consistency   sampling against training, bfloat16 against float32
  embeddings    embeddings of the tokens that occur
  memory        memory on each device

Sound inputs give at most notes. `alignjax.run.examination` puts the checks together for a run.
"""
