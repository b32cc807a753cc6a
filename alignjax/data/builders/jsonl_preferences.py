"""Your own preference pairs."""

from alignjax.data.builders import base


class JsonlPreferences(base.PreferenceBuilder):
  """JSON Lines with rows of the form `preference`.

  The configuration is `text` if prompts are strings and `chat` if prompts are messages.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put train.jsonl, and optionally validation.jsonl and test.jsonl, into --manual_dir; they may be gzipped (.jsonl.gz).
  `alignjax data convert` writes such files from other forms.
  """
  BUILDER_CONFIGS = base.configs('text', 'chat')
  splits = ('train', 'validation', 'test')

  @property
  def chat(self) -> bool:
    return self.builder_config.name == 'chat'
