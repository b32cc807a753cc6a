"""The data, reward and measurements of `alignment_tax`, all as ASCII bytes.

  base     docstrings of Python's standard library, available wherever Python is installed
  skill    small tasks on random words that do not occur in docstrings, `rev:gkd=` -> `dkg`, taught by fine-tuning
  writing  a marker, `>`, and the beginning of a docstring to continue; the task that alignment changes

The marker distinguishes writing from base text and the skill, so a policy could earn its reward after the marker
without losing anything elsewhere. The loss that occurs anyway is the alignment tax.
"""

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
import pathlib
import sysconfig
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import stats
from alignjax.models import base as models
from alignjax.sampling import sampler
from alignjax.training import forward
from alignjax.types import Array, Params, PreferenceBatch
from experiments.toy import descent

Measures = Mapping[str, float]
"""Measurements of one model: `reward`, `skill_loss` (nats per byte of held-out answers) and `exact_match` (fraction of
correct greedy answers), each also as `validation/...`, and `base_loss` (nats per byte of held-out text)."""

VOCABULARY = 128  # number of ASCII codes
PROMPT = 16  # largest prompt, in bytes
OPENING = PROMPT - 1  # bytes of a docstring in a writing prompt
RESPONSE = 20  # bytes of a response
WORD = 3  # letters per word of the skill
HELD_OUT = 8  # every HELD_OUT-th file of the standard library is held out
ELSEWHERE = {'test', 'tests', 'site-packages', 'dist-packages', 'idlelib', 'lib2to3'}
SKILL = {
  'rev': lambda word: word[::-1],
  'up': str.upper,
  'next': lambda word: ''.join(chr((ord(letter) - ord('a') + 1) % 26 + ord('a')) for letter in word),
}
_VOWELS = np.isin(np.arange(VOCABULARY), [ord(letter) for letter in 'aeiouAEIOU'])


class Texts(NamedTuple):
  """Docstrings as single lines, for training and held out; the two come from different files."""

  train: Sequence[str]
  held_out: Sequence[str]


def read_texts(files: int | None = None) -> Texts:
  """Reads the docstrings of the standard library, in the order of its files. They depend on the Python version.

  Args:
    files: number of files to read; None for all.
  """
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  paths = sorted(path for path in root.rglob('*.py') if not ELSEWHERE & set(path.relative_to(root).parts))
  texts = Texts([], [])
  for index, path in enumerate(paths[:files]):
    side = texts.held_out if index % HELD_OUT == HELD_OUT - 1 else texts.train
    side.extend(_docstrings(path))
  return texts


def _docstrings(path: pathlib.Path) -> Iterator[str]:
  for node in ast.walk(ast.parse(path.read_bytes())):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      text = ' '.join((ast.get_docstring(node) or '').split())
      if text and text.isascii():
        yield text


def windows(texts: Sequence[str], prompt: int, response: int, stride: int) -> PreferenceBatch:
  """Windows of base text, one every `stride` bytes: `prompt` bytes and the `response` bytes that follow."""
  stream = np.frombuffer('\n'.join(texts).encode('ascii'), np.uint8).astype(np.int32)
  rows = np.lib.stride_tricks.sliding_window_view(stream, prompt + response)[::stride]
  lengths = np.full(len(rows), prompt), np.full((len(rows), 1), response)
  return descent.batch_of(rows[:, :prompt], lengths[0], rows[:, None, prompt:], lengths[1])


def skill_items(count: int, rng: np.random.Generator, apart_from: Collection[str] = ()) -> Mapping[str, str]:
  """Draws distinct questions of the skill; returns the answers by question.

  Args:
    count: number of questions, about the same for every task.
    rng: random generator for the words.
    apart_from: questions to exclude.
  """
  items = {}
  while len(items) < count:
    task = tuple(SKILL)[len(items) % len(SKILL)]
    word = ''.join(chr(ord('a') + letter) for letter in rng.integers(26, size=WORD))
    question = f'{task}:{word}='
    if question not in apart_from:
      items[question] = SKILL[task](word) + '\n'
  return items


def writing_items(texts: Sequence[str]) -> Mapping[str, str]:
  """Continuations of docstrings by prompt. If several docstrings have the same beginning, the last one counts."""
  whole = OPENING + RESPONSE
  return {f'>{text[:OPENING]}': text[OPENING:whole] for text in texts if len(text) >= whole}


def encoded(items: Mapping[str, str], longest: int = RESPONSE) -> PreferenceBatch:
  """Encodes questions with one answer each, of at most `longest` bytes."""
  prompt, prompt_length = _padded(list(items), PROMPT)
  response, response_length = _padded(list(items.values()), longest)
  return descent.batch_of(prompt, prompt_length, response[:, None], response_length[:, None])


def _padded(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
  rows = np.zeros((len(texts), size), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = np.frombuffer(text.encode('ascii'), np.uint8)
  return rows, np.array([len(text) for text in texts])


def vowel_share(response: np.ndarray) -> np.ndarray:
  """The gold reward: the fraction of vowels among the bytes of a response, along the last axis."""
  return _VOWELS[np.asarray(response)].mean(axis=-1)


def labelled_pairs(
  prompts: PreferenceBatch, response: np.ndarray, sharpness: float, rng: np.random.Generator
) -> PreferenceBatch:
  """Pairs of the best and the worst response to each prompt, with the preferred response first.

  The best response a is preferred to the worst response b with probability sigmoid(sharpness (r(a) - r(b))).

  Args:
    prompts: a batch with the prompts.
    response: responses, [B, N, R].
    sharpness: sharpness of the Bradley-Terry model of preferences.
    rng: random generator for the preferences.
  """
  order = np.argsort(vowel_share(response), axis=1, kind='stable')[:, [-1, 0]]
  pair = np.take_along_axis(response, order[..., None], axis=1)
  reward = vowel_share(pair)
  agrees = rng.random(len(reward)) < 1.0 / (1.0 + np.exp(-sharpness * (reward[:, 0] - reward[:, 1])))
  pair = np.where(agrees[:, None, None], pair, pair[:, ::-1])
  return descent.batch_of(prompts.prompt, prompts.prompt_length, pair, np.full(reward.shape, pair.shape[-1]))


class Judge:
  """Measures models on held-out data.

  Half of the questions and prompts are for validation, the other half for testing.

  Args:
    model: the model, shared by all parameters to measure.
    texts: training and held-out texts. Prompts that occur in `texts.train` are excluded.
    count: number of questions and of prompts, each for validation and again for testing, and of windows of base text.
    window: bytes per window.
    samples: responses per prompt.

  Raises:
    ValueError: there are too few texts.
  """

  def __init__(self, model: models.LanguageModel, texts: Texts, *, count: int, window: int, samples: int):
    self._model, self._samples = model, samples
    base, seen = windows(texts.held_out, 1, window - 1, window), writing_items(texts.train)
    prompts = encoded({key: value for key, value in writing_items(texts.held_out).items() if key not in seen})
    if min(len(base.prompt), len(prompts.prompt) // 2) < count:
      raise ValueError(f'too few held-out texts for {count} windows and {2 * count} prompts: read more files')
    self.questions = skill_items(2 * count, np.random.default_rng(0))
    self._asked = encoded(self.questions, WORD + 1)
    self._windows, self._prompts = _spread(base, count), _spread(prompts, 2 * count)
    self._measure = jax.jit(self._measured)
    self._draw = jax.jit(self._drawn)

  def draw(self, params: Params, prompts: PreferenceBatch, key: Array) -> np.ndarray:
    """Samples responses to writing prompts, [B, N, R]."""
    return np.asarray(self._draw(params, prompts.prompt, prompts.prompt_length, key))

  def __call__(self, params: Params, key: Array) -> Measures:
    """Measures a model. The same key gives the same random numbers for every model."""
    skill_loss, exact_match, base_loss = jax.device_get(self._measure(params))
    reward = vowel_share(self.draw(params, self._prompts, key)).mean(axis=-1)
    measures = {'base_loss': float(base_loss)}
    for name, values in (('reward', reward), ('skill_loss', skill_loss), ('exact_match', exact_match)):
      measures[f'validation/{name}'], measures[name] = float(values[::2].mean()), float(values[1::2].mean())
    return measures

  def _measured(self, params: Params) -> tuple[Array, Array, Array]:
    loss, right = answered(self._model, params, self._asked)
    return loss, right, jnp.mean(answered(self._model, params, self._windows)[0])

  def _drawn(self, params: Params, prompt: Array, prompt_length: Array, key: Array) -> Array:
    decoding = sampler.Decoding(self._samples, max_new_tokens=RESPONSE)
    return sampler.sample(self._model, params, sampler.Prompts(prompt, prompt_length), key, decoding).response


def answered(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> tuple[Array, Array]:
  """For each row [B], the nats per byte of the answer and whether the greedy answer is correct in all bytes."""
  log_probs = stats.log_probs(forward.hidden_states(model, params, batch))
  answer = jnp.asarray(batch.response)
  valid = jnp.arange(answer.shape[-1])[None, None] < jnp.asarray(batch.response_length)[..., None]
  nats = -jnp.take_along_axis(log_probs, answer[..., None], axis=-1)[..., 0]
  loss = jnp.sum(jnp.where(valid, nats, 0.0), axis=(1, 2)) / jnp.sum(valid, axis=(1, 2))
  # The greedy answer is correct if and only if each byte is the most probable one after the correct prefix.
  return loss, jnp.all((jnp.argmax(log_probs, axis=-1) == answer) | ~valid, axis=(1, 2))


def _spread(batch: PreferenceBatch, count: int) -> PreferenceBatch:
  """Selects `count` rows, evenly spaced."""
  rows = np.linspace(0, len(batch.prompt) - 1, count).astype(int)
  return jax.tree.map(lambda x: x[rows], batch)
