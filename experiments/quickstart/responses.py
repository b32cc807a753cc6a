"""Sampled responses, their rewards, and the preference pairs made of them."""

from collections.abc import Sequence
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from alignjax import rewards, stats
from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization
from alignjax.evaluation import evaluator
from alignjax.models import base as models
from alignjax.sampling import strategies, text
from alignjax.types import Array, Params, PreferenceBatch

POLICY = strategies.chain()  # the model's own distribution
CHUNK = 512  # response tokens whose logits exist at once


class Drawn(NamedTuple):
  """N responses to each of B prompts."""

  prompts: Sequence[str]
  batch: PreferenceBatch  # numpy arrays
  texts: list[list[str]]  # [B][N]
  rewards: np.ndarray  # [B, N] float64


class Sizes(NamedTuple):
  """The shape of one group of responses."""

  group: int  # prompts that are worked on together
  samples: int  # responses per prompt
  prompt: int  # tokens to which prompts are padded
  response: int  # tokens after which a response is cut off


class Responder:
  """Samples, scores and compares responses in groups of one shape, so that each program is compiled once.

  Args:
    model: the model; the methods take its parameters.
    mesh: the mesh that holds the parameters.
    tokenizer: the model's tokenizer.
    reward: scores samples.
    sizes: the shape of a group.
    strategy: the distribution to sample from. KL estimates require the model's own, which is the default.
  """

  def __init__(
    self,
    model: models.LanguageModel,
    mesh: jax.sharding.Mesh,
    tokenizer: tokenization.Tokenizer,
    reward: rewards.Score,
    sizes: Sizes,
    strategy: strategies.Strategy = POLICY,
  ):
    self.tokenizer, self.reward, self.sizes = tokenizer, reward, sizes
    options = text.Options(
      samples=sizes.samples,
      max_prompt=sizes.prompt,
      max_new_tokens=sizes.response,
      batch_size=sizes.group,
      strategy=strategy,
      prompt_size=sizes.prompt,
    )
    self._sampler = text.TextSampler(model, tokenizer, mesh, options)
    self._measure = jax.jit(evaluator.build_kl_step(model, chunk=CHUNK))

  def draw(self, params: Params, prompts: Sequence[str], key: Array, rounds: int = 1) -> Drawn:
    """Draws `rounds` times `samples` responses to each prompt.

    The responses depend on the key and on a prompt's position in the list, not on the grouping.
    """
    count, asked = len(prompts), [messages(prompt) for prompt in prompts] * rounds
    parts = list(self._sampler.draw(params, asked, key))
    prompt = np.concatenate([part.prompt for part in parts])[:count]
    prompt_length = np.concatenate([part.prompt_length for part in parts])[:count]
    response = _by_prompt([part.samples.response for part in parts], rounds, count)
    response_length = _by_prompt([part.samples.response_length for part in parts], rounds, count)
    ones = np.ones(count, np.float32)
    batch = PreferenceBatch(prompt, prompt_length, response, response_length, ones, ones)
    texts = [
      [self.tokenizer.decode(ids[:length]).strip() for ids, length in zip(*row, strict=True)]
      for row in zip(response, response_length, strict=True)
    ]
    finished = _by_prompt([part.samples.finished for part in parts], rounds, count)
    samples = [
      rewards.Sample(prompt, answer, int(tokens), bool(end))
      for prompt, *row in zip(prompts, texts, response_length, finished, strict=True)
      for answer, tokens, end in zip(*row, strict=True)
    ]
    return Drawn(prompts, batch, texts, self.reward(samples).reshape(response_length.shape))

  def kl(self, params: Params, reference: Params, drawn: Drawn) -> dict[str, evaluator.Estimate]:
    """Estimates KL(policy || reference) from the policy's samples: by log-ratios of tokens, and by KLs of tokens."""
    parts = []
    for group in self._groups(len(drawn.prompts)):
      batch = jax.tree.map(lambda x, group=group: x[group], drawn.batch)
      parts.append(jax.device_get(self._measure(params, reference, batch).values))
    values = {name: np.concatenate([part[name] for part in parts])[: len(drawn.prompts)] for name in parts[0]}
    mask = np.arange(drawn.batch.response.shape[-1]) < drawn.batch.response_length[..., None]
    log_ratio = values[stats.logp.name] - values[stats.reference_logp.name]
    return {
      'kl': evaluator.kl(log_ratio, mask),
      'kl_of_tokens': evaluator.kl(values[stats.reverse_kl.name], mask),
    }

  def _groups(self, count: int) -> list[np.ndarray]:
    """Indices of rows, group by group; the last group is filled up with the last row."""
    group = self.sizes.group
    return [np.minimum(np.arange(i, i + group), count - 1) for i in range(0, count, group)]


def _by_prompt(parts: Sequence[np.ndarray], rounds: int, count: int) -> np.ndarray:
  """Reorders groups of rows, round after round, [rows, N, ...], to [count, rounds * N, ...]."""
  rows = np.concatenate(parts)
  rows = np.moveaxis(rows.reshape(rounds, count, *rows.shape[1:]), 0, 1)
  return rows.reshape(count, -1, *rows.shape[3:])


def messages(prompt: str) -> list[rows.Message]:
  """A chat that consists of one prompt."""
  return [{'role': 'user', 'content': prompt}]


def longest_prompt(tokenizer: tokenization.Tokenizer, prompts: Sequence[str]) -> int:
  """The length of the longest prompt, in tokens."""
  return max(len(tokenizer.encode_prompt(messages(prompt))) for prompt in prompts)


def write_pairs(path: pathlib.Path, drawn: Drawn, per_prompt: int) -> int:
  """Writes preference pairs as JSON Lines: the best response against the worst, the second best against the second
  worst, and so on.

  Args:
    path: the .jsonl file.
    drawn: responses with their rewards. Empty responses are skipped.
    per_prompt: most pairs per prompt.

  Returns:
    The number of ties, which are left out.
  """
  ties = 0
  with path.open('w', encoding='utf-8') as file:
    for prompt, texts, values in zip(drawn.prompts, drawn.texts, drawn.rewards, strict=True):
      order = sorted((i for i, answer in enumerate(texts) if answer), key=lambda i: -values[i])
      for best, worst in list(zip(order, reversed(order), strict=True))[: min(per_prompt, len(order) // 2)]:
        if values[best] == values[worst]:
          ties += 1
          continue
        row = {
          'prompt': messages(prompt),
          'chosen': texts[best],
          'rejected': texts[worst],
          'score': [values[best], values[worst]],
        }
        file.write(json.dumps(row, ensure_ascii=False) + '\n')
  return ties
