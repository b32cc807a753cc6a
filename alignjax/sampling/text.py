"""Text from a language model: responses to prompts, drawn from a Hugging Face folder."""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import json
import os
from typing import NamedTuple, TextIO

from absl import logging
import jax
import numpy as np

from alignjax.data.reading import drops, rows, sources
from alignjax.data.tokens import tokenization
from alignjax.models import base as models
from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.sampling import sampler, strategies
from alignjax.types import Array, Params

PROMPT_MULTIPLE = 64  # prompts are padded to multiples of this many tokens, so that few shapes are compiled


class Response(NamedTuple):
  """One drawn response."""

  prompt: rows.Prompt
  response: str
  logp: float  # nats, of the whole response
  tokens: int  # the end token included
  finished: bool  # False where it was cut


@dataclasses.dataclass(frozen=True)
class Options:
  """How responses are drawn.

  Attributes:
    samples: responses to each prompt.
    max_prompt: tokens; a longer prompt loses its first tokens.
    max_new_tokens: tokens after which a response is cut.
    batch_size: prompts that are answered together; rounded up to a multiple of the devices that share a batch.
    seed: seed of all draws.
    strategy: decoding strategy; the default draws from the model's own distribution.
  """

  samples: int = 1
  max_prompt: int = 1024
  max_new_tokens: int = 128
  batch_size: int = 8
  seed: int = 0
  strategy: strategies.Strategy = dataclasses.field(default_factory=strategies.chain)


class TextSampler:
  """Draws responses to prompts; the program is compiled once for each padded prompt length.

  Args:
    model: the model to draw from.
    tokenizer: its tokenizer.
    mesh: the mesh that holds its parameters.
    options: how to draw.
  """

  def __init__(
    self, model: models.LanguageModel, tokenizer: tokenization.Tokenizer, mesh: jax.sharding.Mesh, options: Options
  ):
    self._tokenizer, self._mesh, self._options = tokenizer, mesh, options
    shards = parallel_mesh.batch_shards(mesh)
    self._rows = -(-options.batch_size // shards) * shards

    @jax.jit
    def draw(params: Params, key: Array, prompt: Array, length: Array, row_ids: Array) -> sampler.Samples:
      return sampler.sample(
        model,
        params,
        prompt,
        length,
        key,
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        strategy=options.strategy,
        end_ids=sorted(tokenizer.end_ids),
        row_ids=row_ids,
      )

    self._draw = draw

  def __call__(self, params: Params, prompts: Iterable[rows.Prompt]) -> Iterator[Response]:
    """Draws `options.samples` responses to each prompt, in the order of the prompts.

    What is drawn for a prompt depends on the seed and on its position in `prompts`, not on the batch size.

    Args:
      params: of the model, on the mesh.
      prompts: texts, or conversations for the chat template.
    """
    key = jax.random.key(self._options.seed)
    for batch in itertools.batched(enumerate(prompts), self._rows):
      arrays = self._pad(batch)
      drawn = jax.device_get(self._draw(params, key, *jax.device_put(arrays, rules.batch_sharding(self._mesh))))
      for row, (_, prompt) in enumerate(batch):
        for i in range(self._options.samples):
          yield self._response(prompt, drawn, (row, i))

  def _pad(self, batch: Sequence[tuple[int, rows.Prompt]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids [rows, P], lengths [rows] and positions in the list of prompts [rows]."""
    encoded = [self._tokenizer.encode_prompt(prompt, self._options.max_prompt) for _, prompt in batch]
    size = -(-max(map(len, encoded)) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    prompt = np.zeros((self._rows, size), np.int32)
    length = np.ones(self._rows, np.int32)  # what rows after the last prompt draw is dropped
    row_ids = np.full(self._rows, batch[0][0], np.int32)
    row_ids[: len(batch)] = [index for index, _ in batch]
    for row, ids in enumerate(encoded):
      prompt[row, : len(ids)], length[row] = ids, len(ids)
    return prompt, length, row_ids

  def _response(self, prompt: rows.Prompt, drawn: sampler.Samples, place: tuple[int, int]) -> Response:
    tokens = int(drawn.response_length[place])
    return Response(
      prompt=prompt,
      # After a string, the response may start with a space; before an assistant's words, it is the template's.
      response=self._tokenizer.decode(drawn.response[place][:tokens], continues=isinstance(prompt, str)),
      logp=float(drawn.logp[place].sum(dtype=np.float64)),
      tokens=tokens,
      finished=bool(drawn.finished[place]),
    )


def sample(
  folder: str | os.PathLike[str],
  prompts: Iterable[rows.Prompt],
  options: Options | None = None,
  compute_dtype: str = 'float32',
) -> Iterator[Response]:
  """Draws responses from the model in a Hugging Face folder.

  Args:
    folder: of the model.
    prompts: texts, or conversations for the chat template.
    options: how to draw; None means the defaults of `Options`.
    compute_dtype: 'float32' or 'bfloat16', the type of activations.

  Raises:
    ValueError: the folder or a prompt cannot be used.
  """
  tokenizer = tokenization.Tokenizer.load(folder)
  mesh = parallel_mesh.make_mesh()
  config = checkpoint_io.load_config(folder, compute_dtype=compute_dtype)
  model = transformer.build(config, rules.activation_constraint(mesh))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = checkpoint_io.load_params(folder, config, rules.param_shardings(mesh, shapes))
  return TextSampler(model, tokenizer, mesh, options or Options())(params, prompts)


def read_prompts(source: str, ignore_fields: Sequence[str] = ()) -> list[rows.Prompt]:
  """The prompts of `[form:]location`. The default form is `prompts`; responses in the rows are not used.

  Args:
    source: the expression to read.
    ignore_fields: names of fields to ignore; any other unknown field is an error.

  Raises:
    DataError: a malformed row; the message names the line and the field.
    ValueError: no row is left.
  """
  report = drops.DropReport()
  prompts = [
    example.prompt for example in sources.read_examples(source, report, ignore_fields=ignore_fields, default='prompts')
  ]
  if report.dropped:
    logging.warning('%s: %s', source, report)
  if not prompts:
    raise ValueError(f'{source}: no prompts are left: {report}')
  return prompts


def write(responses: Iterator[Response], stream: TextIO) -> None:
  """One JSON object a line."""
  for response in responses:
    stream.write(json.dumps(response._asdict(), ensure_ascii=False) + '\n')
