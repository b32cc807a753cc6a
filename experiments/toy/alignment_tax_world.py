"""What `alignment_tax` teaches, aligns and measures: texts, a skill and a reward, all as bytes of ASCII.

  base     docstrings of Python's standard library, which are wherever Python is
  skill    small tasks on random words that no docstring shows, `rev:gkd=` -> `dkg`: what fine-tuning teaches
  writing  a sign, `>`, and the beginning of a docstring, to be gone on with: what alignment is about

The sign sets writing apart from base text and from the skill, so a policy could earn its reward after the sign and pay
nothing elsewhere. What it does pay is the alignment tax.
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
from alignjax.sampling import sampler, strategies
from alignjax.training import forward
from alignjax.types import Array, Params, PreferenceBatch

Measures = Mapping[str, float]
"""Of one model: `reward`, `skill_loss` (nats per byte of held-out answers), `exact_match` (share of greedy answers),
each also as `validation/...`, and `base_loss` (nats per byte of held-out text)."""

VOCABULARY = 128  # codes of ASCII
PROMPT = 16  # bytes of the longest prompt
OPENING = PROMPT - 1  # bytes of a docstring that a writing prompt shows
RESPONSE = 20  # bytes that are written
WORD = 3  # letters of a word of the skill
HELD_OUT = 8  # every so many-th file of the standard library is not trained on
ELSEWHERE = {'test', 'tests', 'site-packages', 'dist-packages', 'idlelib', 'lib2to3'}
SKILL = {
  'rev': lambda word: word[::-1],
  'up': str.upper,
  'next': lambda word: ''.join(chr((ord(letter) - ord('a') + 1) % 26 + ord('a')) for letter in word),
}
_VOWELS = np.isin(np.arange(VOCABULARY), [ord(letter) for letter in 'aeiouAEIOU'])


class Texts(NamedTuple):
  """Docstrings, each on one line: those to train on, and those of other files."""

  train: Sequence[str]
  held_out: Sequence[str]


def read_texts(files: int | None = None) -> Texts:
  """The docstrings of the standard library in the order of its files; they depend on the version of Python.

  Args:
    files: read so many files only.
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
  """Windows of base text, one every `stride` bytes: `prompt` bytes, and `response` bytes with which they go on."""
  stream = np.frombuffer('\n'.join(texts).encode('ascii'), np.uint8).astype(np.int32)
  rows = np.lib.stride_tricks.sliding_window_view(stream, prompt + response)[::stride]
  lengths = np.full(len(rows), prompt), np.full((len(rows), 1), response)
  return batch_of(rows[:, :prompt], lengths[0], rows[:, None, prompt:], lengths[1])


def skill_items(count: int, rng: np.random.Generator, apart_from: Collection[str] = ()) -> Mapping[str, str]:
  """Answers by question, each once.

  Args:
    count: of questions; every task has about as many.
    rng: draws the words.
    apart_from: questions that must not be asked.
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
  """How docstrings go on, by prompt; of several with one beginning, the last."""
  whole = OPENING + RESPONSE
  return {f'>{text[:OPENING]}': text[OPENING:whole] for text in texts if len(text) >= whole}


def encoded(items: Mapping[str, str], longest: int = RESPONSE) -> PreferenceBatch:
  """Questions with one answer each, of at most `longest` bytes."""
  prompt, prompt_length = _padded(list(items), PROMPT)
  response, response_length = _padded(list(items.values()), longest)
  return batch_of(prompt, prompt_length, response[:, None], response_length[:, None])


def _padded(texts: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
  rows = np.zeros((len(texts), size), np.int32)
  for row, text in zip(rows, texts, strict=True):
    row[: len(text)] = np.frombuffer(text.encode('ascii'), np.uint8)
  return rows, np.array([len(text) for text in texts])


def batch_of(
  prompt: np.ndarray, prompt_length: np.ndarray, response: np.ndarray, response_length: np.ndarray
) -> PreferenceBatch:
  """Rows of weight 1 in which the first response is preferred."""
  ones = np.ones(len(prompt), np.float32)
  return PreferenceBatch(prompt, prompt_length.astype(np.int32), response, response_length.astype(np.int32), ones, ones)


def vowel_share(response: np.ndarray) -> np.ndarray:
  """The gold reward: the share of vowels among the bytes of a response, along the last axis."""
  return _VOWELS[np.asarray(response)].mean(axis=-1)


def labelled_pairs(
  prompts: PreferenceBatch, response: np.ndarray, sharpness: float, rng: np.random.Generator
) -> PreferenceBatch:
  """The best and the worst response to each prompt, the preferred one first: the best one, a, is preferred to b with
  probability sigmoid(sharpness (r(a) - r(b))).

  Args:
    prompts: of which the prompts are taken.
    response: [B, N, R].
    sharpness: of Bradley and Terry's model of whoever compares.
    rng: draws the preferences.
  """
  order = np.argsort(vowel_share(response), axis=1, kind='stable')[:, [-1, 0]]
  pair = np.take_along_axis(response, order[..., None], axis=1)
  reward = vowel_share(pair)
  agrees = rng.random(len(reward)) < 1.0 / (1.0 + np.exp(-sharpness * (reward[:, 0] - reward[:, 1])))
  pair = np.where(agrees[:, None, None], pair, pair[:, ::-1])
  return batch_of(prompts.prompt, prompts.prompt_length, pair, np.full(reward.shape, pair.shape[-1]))


class Judge:
  """Measures models on what none was trained on.

  Half of the questions and of the prompts validate, and half of them test.

  Args:
    model: their shape.
    texts: prompts of `texts.train` are not asked.
    count: of questions and of prompts, each to validate and to test, and of windows of base text.
    window: bytes of each of these.
    samples: responses to each prompt.

  Raises:
    ValueError: for too few texts.
  """

  def __init__(self, model: models.LanguageModel, texts: Texts, *, count: int, window: int, samples: int):
    self._model, self._samples = model, samples
    base, seen = windows(texts.held_out, 1, window - 1, window), writing_items(texts.train)
    prompts = encoded({key: value for key, value in writing_items(texts.held_out).items() if key not in seen})
    if min(len(base.prompt), len(prompts.prompt) // 2) < count:
      raise ValueError(f'there are too few held-out texts for {count} windows and {2 * count} prompts: read more files')
    self.questions = skill_items(2 * count, np.random.default_rng(0))
    self._asked = encoded(self.questions, WORD + 1)
    self._windows, self._prompts = _spread(base, count), _spread(prompts, 2 * count)
    self._measure = jax.jit(self._measured)
    self._draw = jax.jit(self._drawn)

  def draw(self, params: Params, prompts: PreferenceBatch, key: Array) -> np.ndarray:
    """[B, N, R]: responses to writing prompts."""
    return np.asarray(self._draw(params, prompts.prompt, prompts.prompt_length, key))

  def __call__(self, params: Params, key: Array) -> Measures:
    """Measures a model; samples of one key meet the same chance."""
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
    return sampler.sample(
      self._model,
      params,
      prompt,
      prompt_length,
      key,
      samples=self._samples,
      max_new_tokens=RESPONSE,
      strategy=strategies.chain(),
      end_ids=(),
    ).response


def answered(model: models.LanguageModel, params: Params, batch: PreferenceBatch) -> tuple[Array, Array]:
  """Of each row [B]: nats per byte of the answer, and whether the greedy answer is right in all bytes."""
  log_probs = stats.log_probs(forward.hidden_states(model, params, batch))
  answer = jnp.asarray(batch.response)
  valid = jnp.arange(answer.shape[-1])[None, None] < jnp.asarray(batch.response_length)[..., None]
  nats = -jnp.take_along_axis(log_probs, answer[..., None], axis=-1)[..., 0]
  loss = jnp.sum(jnp.where(valid, nats, 0.0), axis=(1, 2)) / jnp.sum(valid, axis=(1, 2))
  # As long as all bytes before are right, the greedy answer is what follows from the right ones.
  return loss, jnp.all((jnp.argmax(log_probs, axis=-1) == answer) | ~valid, axis=(1, 2))


def _spread(batch: PreferenceBatch, count: int) -> PreferenceBatch:
  """So many rows, evenly spread over all."""
  rows = np.linspace(0, len(batch.prompt) - 1, count).astype(int)
  return jax.tree.map(lambda x: x[rows], batch)
