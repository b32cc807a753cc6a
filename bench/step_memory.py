"""Memory of the compiled training step, with logits in chunks and all at once. Nothing is executed.

  python -m bench.step_memory

The model has the shape of SmolLM2-135M, with its own vocabulary and with that of Llama 3. `temporaries` is the memory
that the program needs in addition to its arguments (parameters, Adam's moments, the reference and the batch), as
reported by the compiler. The arguments are donated, so state and gradients reuse their memory. `logits` is the size of
one float32 array of logits for the whole batch.
"""

import dataclasses

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import optax

from alignjax import objectives
from alignjax.models import transformer
from alignjax.training import references
from alignjax.training import state as training_state
from alignjax.training import step as training_step
from alignjax.training.policy import Policy
from alignjax.types import PreferenceBatch
from bench import shapes

_PROMPTS = flags.DEFINE_integer('prompts', 8, 'Prompts in the batch, two responses each.')
_PROMPT = flags.DEFINE_integer('prompt', 128, 'Tokens per prompt.')
_RESPONSE = flags.DEFINE_integer('response', 256, 'Tokens per response.')
_CHUNK = flags.DEFINE_integer('chunk', 512, 'Response tokens whose logits are in memory at once.')
_VOCABULARIES = flags.DEFINE_multi_integer('vocabulary', [49_152, 128_256], 'Vocabulary sizes.')


def abstract_batch(prompts: int, prompt: int, response: int) -> PreferenceBatch:
  """The shapes of a batch of pairs."""

  def shape(*dimensions: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, dtype)

  return PreferenceBatch(
    prompt=shape(prompts, prompt),
    prompt_length=shape(prompts),
    response=shape(prompts, 2, response),
    response_length=shape(prompts, 2),
    label=shape(prompts, dtype=jnp.float32),
    weight=shape(prompts, dtype=jnp.float32),
  )


def compile_step(vocabulary: int, chunk: int) -> jax.stages.Compiled:
  """Compiles the DPO step with AdamW and a live reference."""
  config = dataclasses.replace(shapes.SMOLLM2_135M, vocab_size=vocabulary, remat='full')
  model, tx = transformer.build(config), optax.adamw(1e-6)
  params = jax.eval_shape(model.init, jax.random.key(0))
  state = jax.eval_shape(lambda p: training_state.TrainState.create(p, tx, jax.random.key(0)), params)
  step = training_step.build_train_step(Policy(model), objectives.dpo(), tx, chunk=chunk)
  batch = abstract_batch(_PROMPTS.value, _PROMPT.value, _RESPONSE.value)
  return jax.jit(step, donate_argnums=0).lower(state, training_state.Frozen(references.Live(params)), batch).compile()


def main(_):
  logging.set_verbosity(logging.WARNING)
  tokens = _PROMPTS.value * 2 * _RESPONSE.value
  print(f'{_PROMPTS.value} prompts of {_PROMPT.value} tokens, two responses of {_RESPONSE.value}; MiB')
  print(f'{"vocabulary":>10} {"logits":>8} {"chunk":>6} {"arguments":>10} {"temporaries":>12} {"total":>8}')
  for vocabulary in _VOCABULARIES.value:
    for chunk in (tokens, _CHUNK.value):
      memory = compile_step(vocabulary, chunk).memory_analysis()
      arguments, temporaries = memory.argument_size_in_bytes / 2**20, memory.temp_size_in_bytes / 2**20
      logits = tokens * vocabulary * 4 / 2**20
      sizes = f'{arguments:10.0f} {temporaries:12.0f} {arguments + temporaries:8.0f}'
      print(f'{vocabulary:>10} {logits:8.0f} {chunk:>6} {sizes}', flush=True)


if __name__ == '__main__':
  app.run(main)
