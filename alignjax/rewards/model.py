"""A reward model as a reward: it reads text with its own tokenizer and chat template, as it was trained."""

from collections.abc import Iterator, Sequence
import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from alignjax import pretrained, stats
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io, naming, reward_scale
from alignjax.parallel import rules
from alignjax.rewards import base
from alignjax.types import Array, Params, PreferenceBatch

MULTIPLE = 32  # prompts and responses are padded to a multiple of this number of tokens, to limit compilations


class _Encoded(NamedTuple):
  """A sample as the reward model reads it."""

  prompt: list[int]
  response: list[int]

  def shape(self, positions: int) -> tuple[int, int]:
    """The padded sizes of prompt and response, which fit into `positions` together as the tokens do."""
    prompt, response = (-(-max(1, len(ids)) // MULTIPLE) * MULTIPLE for ids in self)
    prompt = max(len(self.prompt), min(prompt, positions - response))
    return prompt, min(response, positions - prompt)


class RewardModel:
  """Scores samples: r(x, y) after the last token of the response. It is called as a reward.

  A finished response ends with an end token, as in training; a response that was cut does not. Each sample is scored on
  its own: the result does not depend on the other samples, on the batch size or on padding.

  Args:
    loaded: a model with a score head. Its tokenizer need not be that of the policy. All processes that share its mesh
      must score the same samples together.
    scale: rewards are normalised with it; None leaves them unchanged.
    batch_size: samples that are scored at once; rounded up to a multiple of the devices that share a batch.
  """

  collective = True  # all processes compute it together

  def __init__(
    self, loaded: pretrained.Pretrained, *, scale: reward_scale.RewardScale | None = None, batch_size: int = 8
  ):
    self._loaded, self._scale, self._rows = loaded, scale, loaded.rows(batch_size)
    self.fingerprint = ' '.join(map(str, [loaded.fingerprint, *(scale[:2] if scale else ())]))
    model = loaded.model

    @jax.jit
    def rewards(params: Params, batch: PreferenceBatch) -> Array:
      # One token of padding follows each response, so that there is a state before it, after the response.
      inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length + 1)
      states = model.hidden(params, *inputs)
      hidden = stats.HiddenStates(states, model.head(params), stats.final_states(states, batch))
      return stats.statistics({stats.reward}, hidden, None, batch, chunk=1)[stats.reward]

    self._rewards = rewards

  @classmethod
  def load(
    cls, folder: str | os.PathLike[str], *, normalise: bool = True, batch_size: int = 8, compute_dtype: str = 'float32'
  ) -> 'RewardModel':
    """Loads a reward model and its tokenizer from a Hugging Face folder. The weights keep the dtype of their file.

    Args:
      folder: a folder of a sequence classifier with one label, or its name on the Hub.
      normalise: whether rewards are normalised with the scale in reward.json.
      batch_size: samples that are scored at once.
      compute_dtype: type of activations, 'float32' or 'bfloat16'. The score is computed in float32.

    Raises:
      ValueError: the folder cannot be used, or has no scale to normalise with.
    """
    folder = naming.resolve(folder, 'reward_model')
    scale = reward_scale.read(pathlib.Path(folder)) if normalise else None
    loaded = pretrained.load(folder, 'reward_model', compute_dtype=compute_dtype, output='score')
    return cls(loaded, scale=scale, batch_size=batch_size)

  def __call__(self, samples: Sequence[base.Sample]) -> np.ndarray:
    """The reward of each sample, [n] float64.

    Raises:
      ValueError: a sample cannot be encoded, or is too long for the model. The message gives its number.
    """
    encoded = list(self._encode(samples))
    shapes = [each.shape(self._loaded.positions) for each in encoded]
    found = np.zeros(len(encoded), np.float64)
    for shape in sorted(set(shapes)):
      same = [i for i in range(len(encoded)) if shapes[i] == shape]
      for first in range(0, len(same), self._rows):
        rows = same[first : first + self._rows]
        batch = self._placed([encoded[i] for i in rows], shape)
        found[rows] = checkpoint_io.on_host(self._rewards(self._loaded.params, batch))[: len(rows), 0]
    return found if self._scale is None else self._scale.apply(found)

  def _encode(self, samples: Sequence[base.Sample]) -> Iterator[_Encoded]:
    """The tokens of each sample. Long prompts lose their first tokens."""
    tokenizer, positions = self._loaded.tokenizer, self._loaded.positions
    results = tokenizer.encode_all((sample.prompt, [sample.response]) for sample in samples)
    for number, (sample, result) in enumerate(zip(samples, results, strict=True)):
      if isinstance(result, tokenization.EncodingError):
        raise ValueError(f'sample {number} cannot be encoded for the reward model: {result}') from result
      tokenizer.check_ids([*result.prompt, *result.responses[0]], self._loaded.vocab_size, f'sample {number}')
      response = result.responses[0] if sample.finished else result.responses[0][:-1]  # encoding adds the end token
      room = positions - len(response)
      if room < 2:
        raise ValueError(
          f'sample {number}: the response has {len(response)} tokens, and the reward model reads {positions} '
          'tokens of prompt and response: lower max_new_tokens'
        )
      yield _Encoded(tokenizer.truncate_prompt(result.prompt, room), response)

  def _placed(self, encoded: Sequence[_Encoded], shape: tuple[int, int]) -> PreferenceBatch:
    """One response per row, right-padded, on the mesh. Rows after the last one repeat the first token of a prompt."""
    prompt = np.zeros((self._rows, shape[0]), np.int32)
    response = np.zeros((self._rows, 1, shape[1] + 1), np.int32)
    prompt_length, response_length = np.ones(self._rows, np.int32), np.zeros((self._rows, 1), np.int32)
    for row, sample in enumerate(encoded):
      prompt_length[row], response_length[row] = len(sample.prompt), len(sample.response)
      prompt[row, : len(sample.prompt)] = sample.prompt
      response[row, 0, : len(sample.response)] = sample.response
    ones = np.ones(self._rows, np.float32)
    batch = PreferenceBatch(prompt, prompt_length, response, response_length, label=ones, weight=ones)
    return jax.device_put(batch, rules.batch_sharding(self._loaded.mesh))


def calibrate(folder: str | os.PathLike[str], samples: Sequence[base.Sample], source: str) -> reward_scale.RewardScale:
  """Scores samples and writes their mean and standard deviation as the scale of a reward model.

  Args:
    folder: the folder of the reward model; its reward.json is replaced.
    samples: two or more samples, as a rule of the model that a policy starts from.
    source: describes the samples.

  Raises:
    ValueError: the folder or a sample cannot be used, or all rewards are equal.
  """
  scale = reward_scale.RewardScale.of(RewardModel.load(folder, normalise=False)(samples), source)
  if jax.process_index() == 0:
    reward_scale.write(pathlib.Path(folder), scale)
  return scale


@base.factory
def reward_model(folder: str, normalise: bool = True, compute_dtype: str = 'float32') -> base.Score:
  """A trained reward model: r(x, y), normalised with the mean and standard deviation in its folder.

  Args:
    folder: a sequence classifier with one label: a folder, such as `model` in the work directory of a run with
      `bradley_terry()`, or a name on the Hub.
    normalise: whether to subtract the mean and divide by the standard deviation in reward.json.
    compute_dtype: type of activations, 'float32' or 'bfloat16'. The score is computed in float32.

  Raises:
    ValueError: the folder cannot be used, or has no reward.json to normalise with; or the type is another one.
  """
  return RewardModel.load(folder, normalise=normalise, compute_dtype=compute_dtype)
