"""The programs of the command `alignjax`, one module each."""
