"""What lm-evaluation-harness asks of a language model: log-likelihoods of texts, and text until a stop sequence.

Tokens are those of the harness's Hugging Face backend, so scores are comparable: a context and its continuation are
encoded together, without a chat template unless the text was rendered with one, and without an end token.
"""

from collections.abc import Iterator, Sequence
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics, pretrained, stats
from alignjax.data.reading import rows
from alignjax.data.tokens import rendering
from alignjax.models import checkpoint_io
from alignjax.parallel import rules
from alignjax.sampling import sampler, sharded, strategies
from alignjax.types import Array, Params, PreferenceBatch

MULTIPLE = 64  # tokens; sizes are padded to a multiple, to limit compilations
POSITIONS = 2048  # tokens that a model without a limit reads
_LARGEST_LOGP = stats.TokenStat('largest_logp', lambda policy, reference, target: jnp.max(policy, axis=-1))


class Generation(NamedTuple):
  """How text is generated.

  Attributes:
    until: texts that end the response; they are not part of it.
    max_tokens: largest response in tokens.
    temperature: 0 for the most probable token.
    top_k: draw only from this many most probable tokens; 0 for all.
    top_p: draw only from the fewest tokens with this much probability.
    seed: seed of the draws.
  """

  until: tuple[str, ...] = ()
  max_tokens: int = 256
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  @property
  def strategy(self) -> strategies.Strategy:
    """The distribution of the tokens."""
    if self.temperature == 0:
      return strategies.greedy()
    chosen = [strategies.temperature(self.temperature)]
    if self.top_k:
      chosen.append(strategies.top_k(self.top_k))
    return strategies.chain(*chosen, strategies.nucleus(self.top_p))


class _Scored(NamedTuple):
  """A continuation to score."""

  context: Sequence[int]  # at least one token
  continuation: Sequence[int]  # at least one token


class _Parts(NamedTuple):
  """Tokens to score, in two parts of which the second is padded."""

  prompt: Sequence[int]
  response: Sequence[int]
  first: int  # place of the first token of the response that is scored

  def shape(self, max_length: int) -> tuple[int, int]:
    """The padded sizes."""
    prompt, response = map(len, (self.prompt, self.response))
    return prompt, min(-(-response // MULTIPLE) * MULTIPLE, max_length + 1 - prompt)


class TextModel:
  """A language model of texts.

  Args:
    loaded: a language model.
    batch_size: texts that are computed at once; rounded up to a multiple of the devices that share a batch.
    max_length: largest number of tokens that the model reads; 0 for the limit of the model. Longer contexts lose their
      first tokens.
  """

  def __init__(self, loaded: pretrained.Pretrained, *, batch_size: int = 8, max_length: int = 0):
    self.tokenizer, self.max_length = loaded.tokenizer, max_length or loaded.positions or POSITIONS
    self._loaded, self._rows = loaded, loaded.rows(batch_size)
    model, tokenizer = loaded.model, loaded.tokenizer
    self._drawers: dict[Generation, sharded.ShardedSampler] = {}
    self._prefix = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id

    @jax.jit
    def scores(params: Params, batch: PreferenceBatch, first: Array) -> tuple[Array, Array]:
      inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length)
      hidden = stats.HiddenStates(model.hidden(params, *inputs), model.head(params))
      table = stats.statistics({stats.logp, _LARGEST_LOGP}, hidden, None, batch, chunk=1024)
      logp, largest = table[stats.logp][:, 0], table[_LARGEST_LOGP][:, 0]
      scored = table.mask[:, 0] & (jnp.arange(logp.shape[1])[None] >= first[:, None])
      return numerics.masked_sum(logp, scored), jnp.all((logp >= largest) | ~scored, axis=1)

    self._scores = scores

  @classmethod
  def load(
    cls,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    max_length: int = 0,
    compute_dtype: str = 'float32',
  ) -> 'TextModel':
    """Loads a model and its tokenizer from a Hugging Face folder. The weights keep the dtype of their file.

    Args:
      folder: a folder, or its name on the Hub.
      batch_size: see the class.
      max_length: see the class.
      compute_dtype: type of activations, 'float32' or 'bfloat16'.

    Raises:
      ValueError: the folder cannot be used.
    """
    loaded = pretrained.load(folder, 'pretrained', compute_dtype=compute_dtype)
    return cls(loaded, batch_size=batch_size, max_length=max_length)

  def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Log-probabilities of continuations.

    Args:
      pairs: contexts and continuations. Spaces at the end of a context are counted as part of the continuation.

    Returns:
      For each pair, log p(continuation | context) in nats, and whether each of its tokens is the most probable one.

    Raises:
      ValueError: a continuation has no tokens, or more than the model reads.
    """
    return self._score([self._encode_pair(*pair) for pair in pairs])

  def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
    """log p(text) in nats for each text, given the start token. Each token is read with all of the text that fits."""
    windows = [list(self._windows(self.tokenizer.encode_prompt(text))) for text in texts]
    found = iter(self._score([each for of_text in windows for each in of_text]))
    return [sum(next(found)[0] for _ in of_text) for of_text in windows]

  def generate(self, contexts: Sequence[str], generation: Generation) -> list[str]:
    """Generates a text after each context.

    Raises:
      ValueError: the model reads no more than `generation.max_tokens` tokens.
    """
    room = self.max_length - generation.max_tokens
    if room < 1:
      raise ValueError(
        f'max_gen_toks={generation.max_tokens}: must be less than the {self.max_length} tokens that the model reads'
      )
    drawer = self._drawer(generation._replace(until=(), seed=0))
    placed, key = drawer.place(self._loaded.params), jax.random.key(generation.seed)
    encoded = [self.tokenizer.encode_prompt(context)[-room:] for context in contexts]
    found = [''] * len(encoded)
    for places, size in self._groups([-(-len(ids) // MULTIPLE) * MULTIPLE for ids in encoded]):
      prompt, length = _padded([encoded[i] for i in places], (self._rows, min(size, room)))
      numbers = np.array([*places, *[places[0]] * (self._rows - len(places))], np.int32)
      drawn = jax.tree.map(checkpoint_io.on_host, drawer.draw(placed, key, sampler.Prompts(prompt, length, numbers)))
      for row, place in enumerate(places):
        ids = drawn.response[row, 0, : drawn.response_length[row, 0]]
        found[place] = _until(self.tokenizer.decode(ids), generation.until)
    return found

  def _drawer(self, generation: Generation) -> sharded.ShardedSampler:
    """The compiled sampler of a way to generate."""
    if generation not in self._drawers:
      ends = tuple(sorted({self.tokenizer.eos_id, *self.tokenizer.generation_end_ids}))
      decoding = sampler.Decoding(1, generation.max_tokens, generation.strategy, ends)
      self._drawers[generation] = sharded.ShardedSampler(self._loaded.model, self._loaded.mesh, decoding)
    return self._drawers[generation]

  def render(self, messages: list[rows.Message]) -> str:
    """The text of messages by the chat template, up to where the response starts.

    Raises:
      ValueError: the model has no chat template.
    """
    if self.tokenizer.template is None:
      raise ValueError(f'{self.tokenizer.origin}: the model has no chat template; leave out --apply_chat_template')
    return rendering.render_prompt(self.tokenizer.template, messages)

  def _encode_pair(self, context: str, continuation: str) -> _Scored:
    own = self.tokenizer.backend.encode(continuation, add_special_tokens=False).ids
    if not context:
      context_ids, continuation_ids = ([self._prefix], own) if own[:1] != [self._prefix] else (own[:1], own[1:])
    else:
      text = context.rstrip()
      whole = self.tokenizer.encode_prompt(context + continuation)
      context_ids = self.tokenizer.encode_prompt(text) if text else [self._prefix]
      continuation_ids = whole[len(context_ids) :] if text else whole
    if not continuation_ids:
      raise ValueError(f'the continuation {continuation!r} of {context[-40:]!r} has no tokens')
    return _Scored(context_ids, continuation_ids)

  def _windows(self, ids: Sequence[int]) -> Iterator[_Scored]:
    """Parts of a text with the tokens before them; each token is predicted once."""
    whole = [self._prefix, *ids]  # token i is predicted at place i + 1
    for first in range(0, len(ids), self.max_length):
      last = min(first + self.max_length, len(ids))
      before = whole[max(0, last - self.max_length) : first + 1]
      yield _Scored(before, whole[first + 1 : last + 1])

  def _score(self, asked: Sequence[_Scored]) -> list[tuple[float, bool]]:
    """The log-probability of each continuation, and whether it is the greedy one."""
    parts = [self._split(each) for each in asked]
    found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
    for places, shape in self._groups([each.shape(self.max_length) for each in parts]):
      chosen = [parts[i] for i in places]
      prompt, prompt_length = _padded([each.prompt for each in chosen], (self._rows, shape[0]))
      response, response_length = _padded([each.response for each in chosen], (self._rows, shape[1]))
      first = np.zeros(self._rows, np.int32)
      first[: len(chosen)] = [each.first for each in chosen]
      ones = np.ones(self._rows, np.float32)
      batch = PreferenceBatch(prompt, prompt_length, response[:, None], response_length[:, None], ones, ones)
      placed = jax.device_put((batch, first), rules.batch_sharding(self._loaded.mesh))
      logp, greedy = jax.tree.map(checkpoint_io.on_host, self._scores(self._loaded.params, *placed))
      for row, place in enumerate(places):
        found[place] = float(logp[row]), bool(greedy[row])
    return found

  def _split(self, asked: _Scored) -> '_Parts':
    """A context and its continuation as the model gets them: the prompt has no padding."""
    if len(asked.continuation) > self.max_length:
      raise ValueError(
        f'a continuation has {len(asked.continuation)} tokens, and the model reads at most {self.max_length}'
      )
    # The last token of a continuation is not read.
    context = asked.context[-(self.max_length + 1 - len(asked.continuation)) :]
    size = max(1, len(context) // MULTIPLE * MULTIPLE)
    return _Parts(context[:size], [*context[size:], *asked.continuation], len(context) - size)

  def _groups[Size](self, sizes: Sequence[Size]) -> Iterator[tuple[list[int], Size]]:
    """Places of equal size, in groups that are computed at once."""
    for size in sorted(set(sizes)):
      same = [i for i in range(len(sizes)) if sizes[i] == size]
      for first in range(0, len(same), self._rows):
        yield same[first : first + self._rows], size


def _padded(sequences: Sequence[Sequence[int]], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """The sequences in an array padded on the right, and their lengths. The rows after them have one token."""
  ids, length = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)], length[row] = sequence, len(sequence)
  return ids, length


def _until(text: str, stops: Sequence[str]) -> str:
  """The text before the first stop sequence."""
  places = [text.find(stop) for stop in stops if stop]
  return text[: min((place for place in places if place >= 0), default=len(text))]
