"""Your own preference pairs."""

from alignjax.data.builders import base


class JsonlPreferences(base.PreferenceBuilder):
  """Rows of JSON Lines of the form `preference`.

  The configuration is `text` for prompts that are strings and `chat` for prompts that are messages.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Put train.jsonl, and if you like validation.jsonl and test.jsonl, or the same names with .gz, into --manual_dir.
  `alignjax data convert` makes such files of other forms.
  """
  BUILDER_CONFIGS = base.configs('text', 'chat')
  splits = ('train', 'validation', 'test')

  @property
  def chat(self) -> bool:
    return self.builder_config.name == 'chat'
