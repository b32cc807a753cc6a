"""Reward models in Hugging Face folders: sequence classifiers with one label.

They are stored as `…ForSequenceClassification`, with `score.weight` [1, D] in place of an output head.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from alignjax.models import folders

SCORE = 'score.weight'  # [labels, D]
# Label ids are text in JSON.
ENTRIES = {'num_labels': 1, 'id2label': {'0': 'LABEL_0'}, 'label2id': {'LABEL_0': 0}}
BY_TYPE = {  # the classes of transformers, by model_type
  'gemma': 'GemmaForSequenceClassification',
  'gemma2': 'Gemma2ForSequenceClassification',
  'gemma3_text': 'Gemma3TextForSequenceClassification',
  'gpt2': 'GPT2ForSequenceClassification',
  'gpt_neox': 'GPTNeoXForSequenceClassification',
  'llama': 'LlamaForSequenceClassification',
  'mistral': 'MistralForSequenceClassification',
  'mixtral': 'MixtralForSequenceClassification',
  'phi3': 'Phi3ForSequenceClassification',
  'qwen2': 'Qwen2ForSequenceClassification',
  'qwen3': 'Qwen3ForSequenceClassification',
  'qwen3_moe': 'Qwen3MoeForSequenceClassification',
  'smollm3': 'SmolLM3ForSequenceClassification',
  'stablelm': 'StableLmForSequenceClassification',
}


def is_reward_model(architectures: Any) -> bool:
  """Whether `architectures` names a reward model, by whatever class."""
  names = architectures if isinstance(architectures, list) else [architectures]
  return any('Reward' in str(name) or 'Classification' in str(name) for name in names)


def refusal(classifier: str) -> str:
  """Why a reward model of another class is refused.

  Args:
    classifier: the supported class; '' if there is none.
  """
  if not classifier:
    return 'reward models of this model_type are not supported'
  return (
    f'of reward models, only {[classifier]!r}, one linear score head, is supported; other classes compute the reward '
    'with code of their own, which is never run'
  )


def check(entries: Mapping[str, Any]) -> None:
  """Checks that a sequence classifier has one label.

  Raises:
    ValueError: it has another number. The message names the entry that gives it.
  """
  labels = entries.get('num_labels')
  name, found = 'num_labels', labels
  if labels is None:
    mapping = entries.get('id2label')
    # Without both entries, transformers creates two labels.
    name, found = 'id2label', len(mapping) if isinstance(mapping, dict) else 2
  if found != 1 or isinstance(found, bool):
    raise ValueError(
      f'{entries["architectures"][0]} has {found!r} labels by {name}, and a reward model has one: choose such a model'
    )


def check_use(model_type: str, *, stored: bool, wanted: bool) -> None:
  """Checks that a reward model is used as one, and that a new one could be stored.

  Args:
    model_type: the family of the model.
    stored: whether its folder holds a reward model.
    wanted: whether it is used as a reward model.

  Raises:
    ValueError: it cannot be used.
  """
  if stored and not wanted:
    raise ValueError(
      f'the folder holds a reward model ({BY_TYPE[model_type]}), which has no output head: use it as a reward, '
      'reward_model(folder), or train it with an objective of the reward, such as bradley_terry(); otherwise choose a '
      'language model'
    )
  if wanted and model_type not in BY_TYPE:
    raise ValueError(
      f'transformers has no sequence classifier of model_type {model_type!r}, so a reward model could not be stored: '
      f'choose a model of {", ".join(BY_TYPE)}'
    )


def pad_token_id(entries: Mapping[str, Any], assets: str | os.PathLike[str] | None) -> int | None:
  """The padding id to store with a reward model; None unless it differs from the end tokens.

  transformers scores the last token that is not padding. If padding were an end token, it would score the token before
  the end. Without a padding id, it refuses batches of several sequences.

  Args:
    entries: the other entries of config.json.
    assets: the folder of the tokenizer, which names the padding token if `entries` do not.
  """
  pad, ends = entries.get('pad_token_id'), entries.get('eos_token_id')
  if pad is None and assets is not None:
    pad = _padding_of_tokenizer(pathlib.Path(assets))
  return None if pad in (ends if isinstance(ends, list) else [ends]) else pad


def _padding_of_tokenizer(folder: pathlib.Path) -> int | None:
  """The id of the padding token, if the tokenizer has one."""
  if not all((folder / name).exists() for name in ('tokenizer.json', 'tokenizer_config.json')):
    return None
  text = folders.read_json(folder / 'tokenizer_config.json').get('pad_token')
  text = text.get('content') if isinstance(text, dict) else text
  added = folders.read_json(folder / 'tokenizer.json').get('added_tokens') or []
  return next((token['id'] for token in added if token['content'] == text), None)
