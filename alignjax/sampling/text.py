"""Samples text responses to prompts from a model in a Hugging Face folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import os
from typing import Any, NamedTuple, TextIO

from absl import logging
import jax
import numpy as np

from alignjax.data.reading import drops, json_rows, rows, sources
from alignjax.data.tokens import tokenization
from alignjax.models import base as models
from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.sampling import layouts, sampler, sharded, strategies
from alignjax.types import Array, Params

PROMPT_MULTIPLE = 64  # prompts are padded to a multiple of this number of tokens, to limit the number of compilations


class Draw(NamedTuple):
  """A batch of B prompts and their responses, as numpy arrays."""

  prompts: Sequence[rows.Prompt]
  prompt: np.ndarray  # [B, P] int32, right-padded
  prompt_length: np.ndarray  # [B] int32
  samples: sampler.Samples  # N responses to each prompt


class Response(NamedTuple):
  """One drawn response."""

  prompt: rows.Prompt
  response: str
  logp: float  # log-probability of the response under the model's own distribution, in nats
  strategy_logp: float  # the same under the distribution that it was drawn from
  tokens: int  # number of tokens, including the end token
  finished: bool  # False if the response was cut off


@dataclasses.dataclass(frozen=True)
class Options:
  """How responses are drawn.

  Attributes:
    samples: number of responses per prompt.
    max_prompt: largest prompt, in tokens; longer prompts lose their first tokens.
    max_new_tokens: number of tokens after which a response is cut off.
    batch_size: number of prompts per batch; rounded up to a multiple of the devices that share a batch.
    seed: seed of all draws.
    strategy: decoding strategy; the default draws from the model's own distribution.
    prompt_size: number of tokens that prompts are padded to; None pads each batch to a multiple of 64.
    template_arguments: variables of the chat template for all conversations that lack their own.
  """

  samples: int = 1
  max_prompt: int = 1024
  max_new_tokens: int = 128
  batch_size: int = 8
  seed: int = 0
  strategy: strategies.Strategy = dataclasses.field(default_factory=strategies.chain)
  prompt_size: int | None = None
  template_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class TextSampler:
  """Draws responses to prompts; the program is compiled once for each padded prompt length.

  Args:
    model: the model to sample from.
    tokenizer: the tokenizer of the model.
    mesh: the mesh that holds the parameters.
    options: how responses are drawn.
  """

  def __init__(
    self, model: models.LanguageModel, tokenizer: tokenization.Tokenizer, mesh: jax.sharding.Mesh, options: Options
  ):
    self._tokenizer = tokenizer.with_template_arguments(options.template_arguments)
    self._options, self._vocab_size = options, model.config.vocab_size
    self._rows = -(-options.batch_size // mesh.size) * mesh.size
    end_ids = tuple(sorted(tokenizer.end_ids))
    decoding = sampler.Decoding(options.samples, options.max_new_tokens, options.strategy, end_ids)
    self._sampler = sharded.ShardedSampler(model, mesh, decoding)

  def __call__(self, params: Params, prompts: Iterable[rows.Prompt], first: int = 0) -> Iterator[Response]:
    """Draws `options.samples` responses to each prompt, in the order of the prompts.

    The draws for a prompt depend on the seed and on its position in `prompts`, not on the batch size.

    Args:
      params: the parameters of the model, on the mesh; kernels may be adapted or quantised. They are resharded once.
      prompts: texts, or conversations for the chat template.
      first: the position of the first prompt; more than 0 continues an earlier call.
    """
    for drawn in self.draw(params, prompts, jax.random.key(self._options.seed), first):
      for row, prompt in enumerate(drawn.prompts):
        for i in range(self._options.samples):
          yield self._response(prompt, drawn.samples, (row, i))

  def draw(self, params: Params, prompts: Iterable[rows.Prompt], key: Array, first: int = 0) -> Iterator[Draw]:
    """Like calling the sampler, but returns token ids, batch by batch.

    Args:
      params: the parameters of the model, on the mesh; kernels may be adapted or quantised. They are resharded once.
      prompts: texts, or conversations for the chat template.
      key: a typed PRNG key, in place of the seed.
      first: the position of the first prompt.
    """
    placed = self._sampler.place(params)
    for batch in itertools.batched(enumerate(prompts, first), self._rows):
      padded = self._pad(batch)
      drawn = jax.tree.map(checkpoint_io.on_host, self._sampler.draw(placed, key, padded))
      count = len(batch)
      samples = jax.tree.map(lambda x, count=count: x[:count], drawn)
      yield Draw([text for _, text in batch], padded.tokens[:count], padded.length[:count], samples)

  def _pad(self, batch: Sequence[tuple[int, rows.Prompt]]) -> sampler.Prompts:
    """Token ids [rows, P], with positions in the sequence of prompts as row ids [rows]."""
    encoded = [self._tokenizer.encode_prompt(prompt, self._options.max_prompt) for _, prompt in batch]
    for ids in encoded:
      self._tokenizer.check_ids(ids, self._vocab_size, 'a prompt')
    longest = max(map(len, encoded))
    size = self._options.prompt_size or -(-longest // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    if longest > size:
      raise ValueError(f'prompt_size={size}: a prompt has {longest} tokens; increase it, or lower max_prompt')
    prompt = np.zeros((self._rows, size), np.int32)
    length = np.ones(self._rows, np.int32)  # responses of rows after the last prompt are dropped
    row_ids = np.full(self._rows, batch[0][0], np.int32)
    row_ids[: len(batch)] = [index for index, _ in batch]
    for row, ids in enumerate(encoded):
      prompt[row, : len(ids)], length[row] = ids, len(ids)
    return sampler.Prompts(prompt, length, row_ids)

  def _response(self, prompt: rows.Prompt, drawn: sampler.Samples, place: tuple[int, int]) -> Response:
    tokens = int(drawn.response_length[place])
    return Response(
      prompt=prompt,
      # A response to a string may start with a space; in a conversation, a leading space belongs to the template.
      response=self._tokenizer.decode(drawn.response[place][:tokens], continues=isinstance(prompt, str)),
      logp=float(drawn.logp[place].sum(dtype=np.float64)),
      strategy_logp=float(drawn.strategy_logp[place].sum(dtype=np.float64)),
      tokens=tokens,
      finished=bool(drawn.finished[place]),
    )


class Loaded(NamedTuple):
  """A model on the devices, with weights laid out for decoding."""

  model: models.LanguageModel
  tokenizer: tokenization.Tokenizer
  mesh: jax.sharding.Mesh
  params: Params

  def sample(self, prompts: Iterable[rows.Prompt], options: Options, first: int = 0) -> Iterator[Response]:
    """Draws responses; see `TextSampler`."""
    return TextSampler(self.model, self.tokenizer, self.mesh, options)(self.params, prompts, first)


def load(
  folder: str | os.PathLike[str],
  compute_dtype: str = 'float32',
  loading: checkpoint_io.Loading = checkpoint_io.IN_FLOAT32,
) -> Loaded:
  """Loads a Hugging Face folder. Args, Raises: see `sample`."""
  tokenizer = tokenization.Tokenizer.load(folder)
  config = checkpoint_io.load_config(folder, compute_dtype=compute_dtype)
  model, convert = transformer.build(config), loading.convert
  layout = layouts.choose(model, parallel_mesh.make_mesh())
  loading = loading._replace(convert=lambda path, leaf: layout.cast(path, convert(path, leaf)))
  params = checkpoint_io.load_params(folder, config, layout.shardings, loading)
  return Loaded(model, tokenizer, layout.mesh, layout.lay_out(params))


def sample(
  folder: str | os.PathLike[str],
  prompts: Iterable[rows.Prompt],
  options: Options | None = None,
  compute_dtype: str = 'float32',
  loading: checkpoint_io.Loading = checkpoint_io.IN_FLOAT32,
) -> Iterator[Response]:
  """Draws responses from the model in a Hugging Face folder.

  Args:
    folder: the Hugging Face folder of the model.
    prompts: texts, or conversations for the chat template.
    options: how responses are drawn; None for the defaults of `Options`.
    compute_dtype: dtype of activations, 'float32' or 'bfloat16'.
    loading: how the weights are loaded.

  Raises:
    ValueError: the folder or a prompt is invalid.
  """
  return load(folder, compute_dtype, loading).sample(prompts, options or Options())


def read_prompts(source: str, ignore_fields: Sequence[str] = (), unknown_columns: str = 'refuse') -> list[rows.Prompt]:
  """Reads the prompts of `[form:]location`. The default form is `prompts`; responses in the rows are ignored.

  Args:
    source: the data expression.
    ignore_fields: names of columns to ignore, and paths of fields within them.
    unknown_columns: whether other columns are an error ('refuse') or left out ('note').

  Raises:
    DataError: a row is malformed; the message names the line and the field.
    ValueError: no prompts are left.
  """
  report = drops.DropReport()
  examples = sources.read_examples(
    source, report, ignore_fields=ignore_fields, unknown_columns=unknown_columns, default='prompts'
  )
  prompts = [example.prompt for example in examples]
  if report.dropped:
    logging.warning('%s: %s', source, report)
  if not prompts:
    raise ValueError(f'{source}: no prompts are left: {report}')
  return prompts


def write(responses: Iterator[Response], stream: TextIO) -> None:
  """Writes responses as JSON Lines."""
  for response in responses:
    row = response._asdict() | json_rows.of_prompt(response.prompt)
    stream.write(json.dumps(row, ensure_ascii=False) + '\n')
