"""Settings of programs that draw responses from a model in a folder."""

import dataclasses

from alignjax.data.tokens import variables
from alignjax.run import arithmetic, fields
from alignjax.sampling import strategies, text


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
  """Sampling."""

  samples: int = fields.field(1, 'Number of responses to each prompt.', at_least=1)
  max_prompt: int = fields.field(1024, 'Largest prompt in tokens; longer ones lose their first tokens.', at_least=2)
  max_new_tokens: int = fields.field(128, 'Largest response in tokens; longer ones are cut off.', at_least=1)
  greedy: bool = fields.field(False, 'Always take the most probable token instead of drawing.')
  temperature: float = fields.field(
    1.0, 'Divisor of the logits: below 1 sharpens the distribution, above 1 flattens it.'
  )
  top_k: int = fields.field(0, 'Draw only from this many most probable tokens; 0: from all.', at_least=0)
  top_p: float = fields.field(1.0, 'Draw only from the most probable tokens whose probabilities sum to this.')
  strategy: str = fields.field(
    '', 'Decoding strategy instead of the settings above, such as chain(temperature(0.7), nucleus(0.9)).'
  )
  template_arguments: tuple[str, ...] = fields.field((), variables.TEXT)
  seed: int = fields.field(0, 'Seed of the random numbers.', at_least=0, at_most=2**63 - 1)
  batch_size: int = fields.field(8, 'Number of prompts in a batch.', at_least=1)
  compute_dtype: str = fields.field(
    arithmetic.AUTO,
    'Type of activations; parameters are float32. auto: bfloat16 on accelerators and on CPUs that compute it faster.',
    choices=arithmetic.CHOICES,
  )


def options(settings: SamplingSettings) -> text.Options:
  """How a `TextSampler` draws with these settings. Raises: see `build_strategy`."""
  return text.Options(
    samples=settings.samples,
    max_prompt=settings.max_prompt,
    max_new_tokens=settings.max_new_tokens,
    batch_size=settings.batch_size,
    seed=settings.seed,
    strategy=build_strategy(settings),
    template_arguments=fields.naming('--template_arguments', variables.parse, settings.template_arguments),
  )


def settled[S: SamplingSettings](settings: S) -> S:
  """The settings with the type of activations that this machine uses. All processes must call it."""
  return dataclasses.replace(settings, compute_dtype=arithmetic.resolve(settings.compute_dtype))


def build_strategy(settings: SamplingSettings) -> strategies.Strategy:
  """Builds the strategy that the settings describe: temperature first, then top-k and top-p.

  Raises:
    ValueError: a value is out of range, or settings contradict one another.
  """
  parts = (settings.temperature, settings.top_k, settings.top_p)
  if settings.strategy:
    if settings.greedy or parts != (1.0, 0, 1.0):
      raise ValueError('--strategy replaces --greedy, --temperature, --top_k and --top_p: give it without them')
    return fields.naming('--strategy', strategies.parse, settings.strategy)
  if settings.greedy:
    if parts != (1.0, 0, 1.0):
      raise ValueError('--greedy leaves nothing to draw: give it without --temperature, --top_k and --top_p')
    return strategies.greedy()
  chosen = []
  if settings.temperature != 1.0:
    chosen.append(fields.naming('--temperature', strategies.temperature, settings.temperature))
  if settings.top_k:
    chosen.append(fields.naming('--top_k', strategies.top_k, settings.top_k))
  if settings.top_p != 1.0:
    chosen.append(fields.naming('--top_p', strategies.nucleus, settings.top_p))
  return strategies.chain(*chosen)
