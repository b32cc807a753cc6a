"""The savings from encoding each prompt once for all of its responses, and a check that results do not change.

  python -m bench.prefix_sharing

FLOPs are those of SmolLM2-135M without its head, from XLA's cost analysis of the lowered program; the large model is
never compiled or run. Its layers are unrolled, because the analysis counts the body of a loop once, and nothing is
rematerialised. `concatenated` means that the same decoder reads prompt + response as one sequence per response. The
differences are those of a small decoder with random weights, float32 and uneven lengths.
"""

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from alignjax import numerics
from alignjax.models import base, transformer
from alignjax.types import Array, Params
from bench import shapes

_CASES = flags.DEFINE_multi_string(
  'case', ['384/2x64', '128/2x384'], 'Prompt tokens / number of responses x response tokens; may be repeated.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the small decoder and its batch.')


class Tokens(NamedTuple):
  """The arguments of `LanguageModel.hidden`."""

  prompt: Array | jax.ShapeDtypeStruct  # [B, P]
  prompt_length: Array | jax.ShapeDtypeStruct  # [B]
  response: Array | jax.ShapeDtypeStruct  # [B, N, R]
  response_length: Array | jax.ShapeDtypeStruct  # [B, N]


def parse_case(text: str) -> tuple[int, int, int]:
  """Parses '384/2x64' into P, N and R."""
  try:
    prompt, responses = text.split('/')
    samples, response = responses.split('x')
    return int(prompt), int(samples), int(response)
  except ValueError:
    raise ValueError(f'--case={text!r} must have the form 384/2x64') from None


def abstract_tokens(prompts: int, prompt: int, samples: int, response: int) -> Tokens:
  sizes = ((prompts, prompt), (prompts,), (prompts, samples, response), (prompts, samples))
  return Tokens(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in sizes))


def flops(function: Callable[[Params, Tokens], Array], params: Params, tokens: Tokens) -> float:
  """The FLOPs of one call, from the cost analysis of the lowered program."""
  return jax.jit(function).lower(params, tokens).cost_analysis()['flops']


def trunk(model: base.LanguageModel) -> tuple[Callable, Callable]:
  """A forward pass, summed over valid entries, and its gradient."""

  def forward(params: Params, tokens: Tokens) -> Array:
    states = model.hidden(params, *tokens)
    return jnp.sum(jnp.where(numerics.length_mask(tokens.response_length, states.shape[2])[..., None], states, 0.0))

  return forward, jax.grad(forward)


def print_flops():
  config = dataclasses.replace(shapes.SMOLLM2_135M, remat='none', scan_layers=False)
  model = transformer.build(config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  print(f'{"GFLOP for one prompt":24}{"":10}{"shared":>10}{"concatenated":>14}{"ratio":>8}')
  for case in _CASES.value:
    prompt, samples, response = parse_case(case)
    shared = abstract_tokens(1, prompt, samples, response)
    plain = abstract_tokens(samples, 1, 1, prompt + response - 1)
    for name, function in zip(('forward', 'gradient'), trunk(model), strict=True):
      with_sharing, without = flops(function, params, shared) / 1e9, flops(function, params, plain) / 1e9
      print(f'{case:24}{name:10}{with_sharing:10.1f}{without:14.1f}{without / with_sharing:8.2f}')


def small_batch(rng: np.random.Generator, vocab_size: int) -> Tokens:
  prompts, prompt, samples, response = 6, 24, 2, 12
  return Tokens(
    prompt=rng.integers(0, vocab_size, (prompts, prompt)),
    prompt_length=rng.integers(1, prompt + 1, prompts),
    response=rng.integers(0, vocab_size, (prompts, samples, response)),
    response_length=rng.integers(1, response + 1, (prompts, samples)),
  )


def concatenate(tokens: Tokens) -> tuple[Tokens, tuple[np.ndarray, ...]]:
  """Builds one row per response, with only its first token as the prompt; also returns the indices of valid entries."""
  sequences, rows, entries = [], [], []
  for b, n in np.ndindex(tokens.response_length.shape):
    prompt_length, length = tokens.prompt_length[b], tokens.response_length[b, n]
    rows.append(np.full(length, len(sequences)))
    entries.append(prompt_length - 1 + np.arange(length))
    sequences.append(np.concatenate([tokens.prompt[b, :prompt_length], tokens.response[b, n, :length]]))
  size = max(map(len, sequences))
  padded = np.array([np.pad(sequence, (0, size - len(sequence))) for sequence in sequences])
  count = len(sequences)
  plain = Tokens(padded[:, :1], np.ones(count, int), padded[:, None, 1:], np.array([[len(s) - 1] for s in sequences]))
  rows = np.concatenate(rows)
  return plain, (rows, np.zeros_like(rows), np.concatenate(entries))


def print_differences():
  config = transformer.TransformerConfig(
    vocab_size=512,
    width=64,
    layers=4,
    heads=4,
    kv_heads=2,
    head_width=16,
    mlp_width=160,
    norm_epsilon=1e-5,
    rope_theta=1e4,
    tied_embeddings=True,
    max_positions=64,
  )
  model = transformer.build(config)
  params = jax.jit(model.init)(jax.random.key(_SEED.value))
  rng = np.random.default_rng(_SEED.value)
  tokens = small_batch(rng, config.vocab_size)
  plain, where = concatenate(tokens)
  valid = np.nonzero(np.asarray(numerics.length_mask(tokens.response_length, tokens.response.shape[2])))
  weights = rng.standard_normal((len(where[0]), config.width)).astype(np.float32)

  @jax.jit
  def states_and_gradient(tokens: Tokens, entries: tuple[Array, ...]) -> tuple[Array, Params]:
    def loss(params: Params) -> tuple[Array, Array]:
      states = model.hidden(params, *tokens)[entries]
      return jnp.sum(weights * states), states

    gradient, states = jax.grad(loss, has_aux=True)(params)
    return states, gradient

  shared_states, shared_gradient = states_and_gradient(tokens, valid)
  plain_states, plain_gradient = states_and_gradient(plain, where)
  difference = jax.tree.map(jnp.subtract, shared_gradient, plain_gradient)
  norm = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(plain_gradient)))
  error = jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(difference)))
  print(f'max |difference of hidden states|  {np.abs(shared_states - plain_states).max():.1e}')
  print(f'relative error of the gradient     {error / norm:.1e}')


def main(_):
  print_flops()
  print()
  print_differences()


if __name__ == '__main__':
  app.run(main)
