"""The programs behind the command `alignjax`: one module each."""
