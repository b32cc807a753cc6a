"""Anthropic's HH-RLHF: human preferences about helpfulness and harmlessness."""

from alignjax.data.builders import base

FOLDERS = ('harmless-base', 'helpful-base', 'helpful-online', 'helpful-rejection-sampled')
TEXT = '-text'


class HhRlhf(base.PreferenceBuilder):
  """Dialogues of a person with an assistant, and two replies to the last turn.

  Each folder of the publication is a configuration whose prompts are chat messages. With `-text` after the name,
  prompts are the text of the transcript instead, for models without a chat template.
  """

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download train.jsonl.gz and test.jsonl.gz of a folder of https://huggingface.co/datasets/Anthropic/hh-rlhf, such as
  harmless-base, into a folder of that name in --manual_dir.
  """
  BUILDER_CONFIGS = base.configs(*FOLDERS, *(folder + TEXT for folder in FOLDERS))
  splits = ('train', 'test')

  @property
  def form(self) -> str:
    return 'hh' if self.chat else 'hh_text'

  @property
  def chat(self) -> bool:
    return not self.builder_config.name.endswith(TEXT)

  def patterns(self, split: str) -> tuple[str, ...]:
    folder = self.builder_config.name.removesuffix(TEXT)
    return f'{folder}/{split}.jsonl.gz', f'{folder}/{split}.jsonl'
