"""Samples responses from a language model.

  python -m experiments.sample --model=runs/first/model --prompt='Tell me about your day.' --samples=3
  python -m experiments.sample --model=runs/first/model --prompts=questions.jsonl --greedy --output=answers.jsonl

A text given by --prompt is a user's message where the model has a chat template, and otherwise the beginning of a text.
--prompts takes [form:]location like training data, such as hh:train.jsonl.gz. Without a form, rows are {"prompt": ...},
where a string stands as it is and a list of messages goes through the chat template. Each line of --output holds
prompt, response, its log-probability in nats under the model's own distribution, its tokens, and whether it came to an
end. The same command draws the same responses.

Exit codes: 0 done, 1 an error in flags, model or prompts.
"""

from collections.abc import Iterator, Sequence
import itertools
import json
import os
import pathlib
import sys
import traceback
from typing import Any, NamedTuple, TextIO

from absl import app, flags, logging
import jax
import numpy as np

from alignjax.data.reading import drops, rows, sources
from alignjax.data.tokens import tokenization
from alignjax.models import checkpoint_io, transformer
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.sampling import sampler, strategies
from alignjax.training import placement

PROMPT_MULTIPLE = 64  # prompts are padded to multiples of this many tokens, so that few shapes are compiled


class Response(NamedTuple):
  """One drawn response."""

  prompt: rows.Prompt
  response: str
  logp: float  # nats, of the whole response
  tokens: int  # the end token included
  finished: bool  # False where it was cut


def build_strategy(*, greedy: bool, temperature: float, top_k: int, top_p: float) -> strategies.Strategy:
  """The strategy that the flags describe: temperature first, then the exclusions.

  Raises:
    ValueError: for values that are out of range or contradict one another.
  """
  if greedy:
    if (temperature, top_k, top_p) != (1.0, 0, 1.0):
      raise ValueError('--greedy leaves nothing to draw: give it without --temperature, --top_k and --top_p')
    return strategies.greedy()
  parts = []
  if temperature != 1.0:
    parts.append(strategies.temperature(temperature))
  if top_k:
    parts.append(strategies.top_k(top_k))
  if top_p != 1.0:
    parts.append(strategies.nucleus(top_p))
  return strategies.chain(*parts)


def sample(
  folder: str,
  prompts: Sequence[rows.Prompt],
  strategy: strategies.Strategy,
  *,
  samples: int = 1,
  max_prompt: int = 1024,
  max_new_tokens: int = 128,
  seed: int = 0,
  batch_size: int = 8,
  compute_dtype: str = 'float32',
) -> Iterator[Response]:
  """Draws `samples` responses to each prompt, in the order of the prompts.

  What is drawn for a prompt depends on the seed and on its place in `prompts`, not on the batch size.

  Raises:
    ValueError: for a folder or prompts that are unfit.
  """
  tokenizer = tokenization.Tokenizer.load(folder)
  mesh = mesh_lib.make_mesh()
  config = checkpoint_io.load_config(folder, compute_dtype=compute_dtype)
  model = transformer.build(config, rules.activation_constraint(mesh))
  key = jax.random.key(seed)
  params = checkpoint_io.load_params(folder, config, rules.param_shardings(mesh, jax.eval_shape(model.init, key)))
  rows = -(-batch_size // mesh_lib.batch_shards(mesh)) * mesh_lib.batch_shards(mesh)

  @jax.jit
  def draw(params: Any, key: jax.Array, prompt: jax.Array, length: jax.Array, row_ids: jax.Array) -> sampler.Samples:
    return sampler.sample(
      model,
      params,
      prompt,
      length,
      key,
      samples=samples,
      max_new_tokens=max_new_tokens,
      strategy=strategy,
      end_ids=sorted(tokenizer.end_ids),
      row_ids=row_ids,
    )

  for batch in itertools.batched(enumerate(prompts), rows):
    encoded = [tokenizer.encode_prompt(prompt, max_prompt) for _, prompt in batch]
    size = -(-max(map(len, encoded)) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    prompt = np.zeros((rows, size), np.int32)
    length = np.ones(rows, np.int32)  # rows past the last prompt draw something that nobody looks at
    row_ids = np.full(rows, batch[0][0], np.int32)
    row_ids[: len(batch)] = [index for index, _ in batch]
    for row, ids in enumerate(encoded):
      prompt[row, : len(ids)], length[row] = ids, len(ids)
    drawn = jax.device_get(draw(params, key, *placement.to_global(mesh, (prompt, length, row_ids))))
    for row, (_, text) in enumerate(batch):
      for i in range(samples):
        tokens = int(drawn.response_length[row, i])
        yield Response(
          prompt=text,
          # After a string, the response may start with a space; before an assistant's words, it is the template's.
          response=tokenizer.decode(drawn.response[row, i, :tokens], continues=isinstance(text, str)),
          logp=float(drawn.logp[row, i].sum(dtype=np.float64)),
          tokens=tokens,
          finished=bool(drawn.finished[row, i]),
        )


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


def _given_prompts(given: flags.FlagValues) -> list[rows.Prompt]:
  if (given.prompt is None) == (given.prompts is None):
    raise ValueError('give either --prompt or --prompts')
  if given.prompts is not None:
    return read_prompts(given.prompts, given.ignore_fields)
  if tokenization.Tokenizer.load(given.model).template is None:
    return [given.prompt]
  return [[{'role': 'user', 'content': given.prompt}]]


def write(responses: Iterator[Response], stream: TextIO) -> None:
  """One JSON object a line."""
  for response in responses:
    stream.write(json.dumps(response._asdict(), ensure_ascii=False) + '\n')


def _print(responses: Iterator[Response]) -> None:
  for response in responses:
    prompt = response.prompt if isinstance(response.prompt, str) else response.prompt[-1]['content']
    length = f'{response.tokens} tokens' if response.finished else f'cut after {response.tokens} tokens'
    print(f'--- {prompt}\n{response.response}\n    [{length}, log-probability {response.logp:.2f}]')


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The flags of the program. Not on import: flags are global, and other programs have flags of the same names."""

  def text(name: str, meaning: str) -> None:
    flags.DEFINE_string(name, None, meaning, flag_values=values)

  def whole(name: str, default: int, lower_bound: int, meaning: str) -> None:
    flags.DEFINE_integer(name, default, meaning, lower_bound=lower_bound, flag_values=values)

  text('model', 'Folder of the model, in Hugging Face layout.')
  text('prompt', 'One prompt.')
  text('prompts', 'Prompts to read, [form:]location, as for --data of training; the default form is prompts.')
  flags.DEFINE_list('ignore_fields', [], 'Fields of the rows of --prompts to ignore; any other must be known.', values)
  text('output', 'A .jsonl file to write; without it, responses are printed.')
  whole('samples', 1, 1, 'Responses to each prompt.')
  whole('max_prompt', 1024, 2, 'Tokens; longer prompts are cut on the left.')
  whole('max_new_tokens', 128, 1, 'Tokens after which a response is cut.')
  whole('top_k', 0, 0, 'Draw from the k most probable tokens; 0: from all.')
  whole('seed', 0, 0, 'Of all draws.')
  whole('batch_size', 8, 1, 'Prompts at a time.')
  flags.DEFINE_bool('greedy', False, 'Always the most probable token, instead of drawing.', flag_values=values)
  flags.DEFINE_float('temperature', 1.0, 'Below 1 sharper, above 1 flatter than the model.', flag_values=values)
  flags.DEFINE_float('top_p', 1.0, 'Draw from the most probable tokens that sum to this.', flag_values=values)
  flags.DEFINE_enum(
    'compute_dtype', 'float32', ['float32', 'bfloat16'], 'Of activations; parameters are float32.', flag_values=values
  )
  flags.mark_flag_as_required('model', flag_values=values)


def run(given: flags.FlagValues) -> None:
  """Does what the flags say.

  Raises:
    ValueError: for flags, a model or prompts that are unfit.
  """
  responses = sample(
    given.model,
    _given_prompts(given),
    build_strategy(greedy=given.greedy, temperature=given.temperature, top_k=given.top_k, top_p=given.top_p),
    samples=given.samples,
    max_prompt=given.max_prompt,
    max_new_tokens=given.max_new_tokens,
    seed=given.seed,
    batch_size=given.batch_size,
    compute_dtype=given.compute_dtype,
  )
  if given.output is None:
    _print(responses)
    return
  partial = pathlib.Path(given.output + '.partial')
  with partial.open('w', encoding='utf-8') as stream:
    write(responses, stream)
  os.replace(partial, given.output)


def attempt(given: flags.FlagValues) -> int:
  """Runs, tells what went wrong, and returns the exit code."""
  try:
    run(given)
  except (ValueError, OSError) as error:
    logging.debug('%s', traceback.format_exc())
    print(f'error: {error}\n(--verbosity=1 shows where)', file=sys.stderr)
    return 1
  return 0


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f'what is {argv[1]!r}? Prompts are given by --prompt')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  sys.exit(attempt(flags.FLAGS))


def start() -> None:
  """The program; flags are defined here and not on import, because they are global."""
  sys.modules['__main__'].__doc__ = __doc__
  define_flags()
  app.run(main)
