"""Binarised UltraFeedback: the best of four scored answers to a prompt, and one of the others."""

from alignjax.data.builders import base


class UltrafeedbackBinarized(base.PreferenceBuilder):
  """Chat prompts with two answers each, and the scores that GPT-4 gave them."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  Download the Parquet files of train_prefs and test_prefs from
  https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized into --manual_dir, or write the same rows to
  train_prefs.jsonl and test_prefs.jsonl.
  """
  splits = ('train', 'test')
  form = 'binarised'
  chat = True

  def patterns(self, split: str) -> tuple[str, ...]:
    return f'**/{split}_prefs-*.parquet', f'{split}_prefs.jsonl', f'{split}_prefs.jsonl.gz'
