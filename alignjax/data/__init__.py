"""From files to batches, in three wings that each import only from the ones before: `reading`, `tokens`, `batches`.

`reading` turns rows of files, hubs and TFDS into `Example`s of text, `tokens` turns those into token ids, and `batches`
pads and orders them. `builders` prepares TFDS datasets and uses `reading` alone.
"""
