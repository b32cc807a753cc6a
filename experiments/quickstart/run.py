"""Aligns a real language model on this machine, and shows what came of it.

  make quickstart                                                   the default objective, dpo(beta=0.1)
  OBJECTIVE='simpo(beta=2.0, gamma=0.5) + 0.1 * sft()' make quickstart

Controlled sentiment generation: SmolLM2-135M-Instruct answers everyday prompts, a gold reward (VADER sentiment) says
which of its answers is the nicer one, and the objective trains the model on these pairs. Prompts that it has not seen
are answered before, during and after. --workdir gets

  summary.json   results, what they cost, settings and versions
  figure.png     the training, and what it bought
  samples.md     answers before and after, side by side
  pairs.jsonl    the preference pairs
  metrics.jsonl  every step
  model/         the aligned model, in Hugging Face layout
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import importlib.metadata
import pathlib
import platform
import sys
from typing import Any, NamedTuple

from absl import app, flags, logging
import jax
import jax.numpy as jnp
from rich import console as rich_console

from alignjax import objectives, rewards, stats
from alignjax.data.batches import batching, shapes
from alignjax.data.reading import drops, sources
from alignjax.data.tokens import dataset, encoding, tokenization
from alignjax.evaluation import evaluator, frontier
from alignjax.models import base as models
from alignjax.models import checkpoint_io, transformer
from alignjax.optim import recipes, schedules
from alignjax.parallel import mesh as mesh_lib
from alignjax.parallel import rules
from alignjax.run import costs, smollm2, xla_flags
from alignjax.sampling import strategies
from alignjax.training import loop, metrics, placement, references
from alignjax.training import state as state_lib
from alignjax.training import step as step_lib
from alignjax.training.policy import Policy
from alignjax.types import Params
from experiments.quickstart import prompts as quickstart_prompts
from experiments.quickstart import report as quickstart_report
from experiments.quickstart import responses as quickstart_policy

SHOWN = 16  # prompts in samples.md
VERSIONED = ('flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'tokenizers', 'vaderSentiment')


def _setting(default: Any, text: str) -> Any:
  return dataclasses.field(default=default, metadata={'text': text})


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the flags set."""

  objective: str = _setting('dpo(beta=0.1)', 'Expression of objectives.')
  workdir: str = _setting('runs/quickstart', 'Folder for everything that the run writes.')
  model: str = _setting('', 'Folder of another model to align, in Hugging Face layout.')
  seed: int = _setting(0, 'Of all that is drawn.')
  train_prompts: int = _setting(96, 'Prompts from which preference pairs are made.')
  held_out_prompts: int = _setting(64, 'Prompts on which the model is evaluated.')
  group: int = _setting(32, 'Prompts that are answered together.')
  samples: int = _setting(4, 'Responses to a prompt that are drawn together.')
  draws: int = _setting(2, 'Times that responses to a training prompt are drawn.')
  max_new_tokens: int = _setting(32, 'Tokens after which a response is cut off.')
  pairs_per_prompt: int = _setting(2, 'Most preference pairs from one prompt.')
  batch_size: int = _setting(8, 'Pairs in an update.')
  optimizer: str = _setting('adamw(2e-5)', 'Expression of the optimizer.')
  gradient_clip: float = _setting(1.0, 'Largest global norm of a gradient.')
  evaluations: int = _setting(3, 'Checkpoints that are evaluated, the last one included.')
  compute_dtype: str = _setting('auto', 'float32, bfloat16, or auto: the faster of the two here.')


class Evaluations:
  """Evaluates the states that the training loop would save: it is given this where it expects checkpoints.

  Args:
    policy: draws and measures.
    reference: parameters of the reference.
    before: the reference's responses to the held-out prompts.
    key: with which they were drawn; each response meets the same chance again.
    clock: counts the time.
    console: shows a line for each state.
  """

  def __init__(
    self,
    policy: quickstart_policy.Policy,
    reference: Params,
    before: quickstart_policy.Drawn,
    key: jax.Array,
    clock: costs.Clock,
    console: rich_console.Console,
  ):
    self.due: Collection[int] = ()  # steps to evaluate; the loop also saves where it is told to stop
    self.before = self.after = before
    self.kl = dict.fromkeys(('kl', 'kl_of_tokens'), evaluator.Estimate(0.0, 0.0))
    self.points = [self._point(0)]
    self._policy, self._reference, self._key = policy, reference, key
    self._clock, self._console = clock, console

  def steps(self) -> list[int]:
    """Those that have been evaluated."""
    return [point.step for point in self.points]

  def save(self, step: int, state: state_lib.TrainState, iterator: Any) -> None:
    """Draws responses from the state, scores them and measures how far they are from the reference."""
    del iterator  # only resuming would need it
    if step not in self.due:
      return
    with self._clock('evaluate'):
      self.after = self._policy.draw(state.params, self.before.prompts, self._key)
      self.kl = self._policy.kl(state.params, self._reference, self.after)
    self.points.append(self._point(step))
    self._console.print(
      f'step {step}: gold reward {self.points[-1].reward}, KL {self.points[-1].kl}', highlight=False, soft_wrap=True
    )

  def _point(self, step: int) -> frontier.Point:
    return frontier.Point(step, evaluator.clustered_mean(self.after.rewards), self.kl['kl_of_tokens'])


class Setup(NamedTuple):
  """What the stages share."""

  settings: Settings
  reward: rewards.Reward
  workdir: pathlib.Path
  folder: pathlib.Path  # of the model before training
  config: transformer.TransformerConfig
  model: models.LanguageModel
  mesh: jax.sharding.Mesh
  tokenizer: tokenization.Tokenizer
  reference: Params
  shape: shapes.Bucket  # tokens of a prompt and of a response

  def policy(self, **options: Any) -> quickstart_policy.Policy:
    prompt_size, max_new_tokens = self.shape
    return quickstart_policy.Policy(
      self.model, self.tokenizer, self.reward, prompt_size=prompt_size, max_new_tokens=max_new_tokens, **options
    )


def run(settings: Settings, reward: rewards.Reward) -> dict[str, Any]:
  """Does it all, and returns the summary.

  Args:
    settings: see `Settings`.
    reward: the gold reward.

  Raises:
    ValueError: an objective or a setting that cannot be, before anything expensive is done.
  """
  objective = objectives.parse(settings.objective)
  recipe = recipes.parse_optimizer(settings.optimizer)
  if recipe.needs_delta or recipe.averages:
    raise ValueError(f'--optimizer={settings.optimizer}: only experiments.train merges and averages')
  prompts, held_out = quickstart_prompts.prompts(settings.train_prompts, settings.held_out_prompts)
  console, clock = rich_console.Console(), costs.Clock()
  with clock('load'):
    setup = _set_up(settings, reward, prompts + held_out)
    policy = setup.policy(group=settings.group, samples=settings.samples)
  console.print(
    f'objective  {objective.name}\nmodel      {setup.folder}, computed in {setup.config.compute_dtype}', soft_wrap=True
  )
  draw_key, evaluation_key, state_key = jax.random.split(jax.random.key(settings.seed), 3)
  with clock('sample'), console.status('answering the training prompts'):
    drawn = policy.draw(setup.reference, prompts, draw_key, settings.draws)
  with clock('evaluate'), console.status('answering the held-out prompts'):
    before = policy.draw(setup.reference, held_out, evaluation_key)
  data = {
    'train': _make_pairs(setup, console, 'pairs', drawn, settings.pairs_per_prompt),
    'held_out': _make_pairs(setup, console, 'pairs_held_out', before, 1),
  }
  evaluations = Evaluations(policy, setup.reference, before, evaluation_key, clock, console)
  with clock('train'):
    params = _train(setup, objective, recipe, data, state_key, evaluations)
  with clock('report'):
    checkpoint_io.save(setup.workdir / 'model', setup.config, params, assets_from=setup.folder)
    results = _results(setup, drawn, evaluations)
    _show(setup, objective, params, evaluations)
  summary = {
    'objective': objective.name,
    'results': results,
    'costs': {'seconds': clock.seconds(), 'peak_memory_gib': costs.peak_memory_gib()},
    'settings': dataclasses.asdict(settings) | {'compute_dtype': setup.config.compute_dtype},
    'versions': {'python': platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONED},
  }
  quickstart_report.write_summary(setup.workdir / 'summary.json', summary)
  quickstart_report.print_summary(console, summary)
  console.print(
    f'{setup.workdir}: summary.json, figure.png, samples.md and the aligned model, model/',
    highlight=False,
    soft_wrap=True,
  )
  return summary


def _set_up(settings: Settings, reward: rewards.Reward, prompts: Sequence[str]) -> Setup:
  dtype = _compute_dtype(settings.compute_dtype)
  workdir = pathlib.Path(settings.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  folder = pathlib.Path(settings.model) if settings.model else smollm2.convert(workdir / 'base')
  config = checkpoint_io.load_config(folder, compute_dtype=dtype)
  mesh = mesh_lib.make_mesh()
  model = transformer.build(config, rules.activation_constraint(mesh))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  tokenizer = tokenization.Tokenizer.load(folder)
  return Setup(
    settings=settings,
    reward=reward,
    workdir=workdir,
    folder=folder,
    config=config,
    model=model,
    mesh=mesh,
    tokenizer=tokenizer,
    reference=checkpoint_io.load_params(folder, config, rules.param_shardings(mesh, shapes)),
    shape=(quickstart_policy.longest_prompt(tokenizer, prompts), settings.max_new_tokens),
  )


def _compute_dtype(wanted: str) -> str:
  """Resolves 'auto', and prepares XLA; nothing may have been computed yet."""
  if wanted == 'float32':
    return wanted
  fast = xla_flags.enable_fast_bfloat16()
  if wanted != 'auto':
    return wanted
  return 'bfloat16' if fast or jax.default_backend() != 'cpu' else 'float32'


def _make_pairs(
  setup: Setup, console: rich_console.Console, name: str, drawn: quickstart_policy.Drawn, per_prompt: int
) -> dataset.TokenDataset:
  """Writes pairs to a file, and reads them back as any other preference data."""
  path = setup.workdir / f'{name}.jsonl'
  ties = quickstart_policy.write_pairs(path, drawn, per_prompt)
  report = drops.DropReport()
  # A response that was cut off when it was sampled is learnt as it is, without an end token.
  limits = encoding.Limits(*setup.shape, setup.config.vocab_size, truncate_response=True)
  tokenized = encoding.tokenize(sources.read_examples(path, report), setup.tokenizer, limits, report)
  console.print(
    f'{path}: {len(tokenized)} pairs; left out: {ties} ties, {report.read - report.kept} unfit', highlight=False
  )
  return tokenized


def _train(
  setup: Setup,
  objective: objectives.Objective,
  recipe: recipes.Recipe,
  data: Mapping[str, dataset.TokenDataset],
  key: jax.Array,
  evaluations: Evaluations,
) -> Params:
  """One epoch over the training pairs; returns the parameters."""
  settings, mesh = setup.settings, setup.mesh

  def batches(name: str, epochs: int | None) -> batching.Batches:
    spec = batching.BatchSpec(
      settings.batch_size, seed=settings.seed, epochs=epochs, buckets=[setup.shape], shuffle=name == 'train'
    )
    return batching.make_batches(data[name], spec)

  train = batches('train', None)
  steps = train.plan.steps_per_epoch
  every = -(-steps // settings.evaluations)
  evaluations.due = {*range(every, steps, every), steps}
  schedule = schedules.build_schedule('linear', recipe.learning_rate, steps=steps, warmup=min(4, steps))
  tx = recipes.build_optimizer(recipe, schedule, settings.gradient_clip)
  needs_reference = bool(stats.missing_reference(objective.needs, ()))
  writers = [metrics.JsonlWriter(setup.workdir / 'metrics.jsonl'), metrics.ConsoleWriter(steps, every=4)]
  try:
    result = loop.train(
      placement.create_state(mesh, jax.tree.map(jnp.copy, setup.reference), tx, key, objective.memory.initial),
      state_lib.Frozen(references.Live(setup.reference) if needs_reference else references.NotLoaded()),
      step_lib.build_train_step(Policy(setup.model), objective, tx, chunk=quickstart_policy.CHUNK, mesh=mesh),
      iter(train),
      mesh=mesh,
      steps=steps,
      schedule=schedule,
      writers=writers,
      evaluation=loop.Evaluation(
        step_lib.build_eval_step(Policy(setup.model), objective, chunk=quickstart_policy.CHUNK, mesh=mesh),
        batches('held_out', 1),
        summary=objective.summary,
      ),
      checkpoints=evaluations,
      save_every=every,
      origin=data['train'].origin,
    )
  finally:
    for writer in writers:
      writer.close()
  if result.preempted:
    sys.exit('quickstart: told to stop')
  return result.state.params


def _results(setup: Setup, drawn: quickstart_policy.Drawn, evaluations: Evaluations) -> dict[str, Any]:
  """Everything that comes out the same in every run of the same settings."""
  before, after = evaluations.before, evaluations.after
  records = metrics.read_jsonl(setup.workdir / 'metrics.jsonl')
  rise = evaluator.gain(after.rewards, before.rewards)
  estimates = {
    'gold_reward_of_training_samples': evaluator.clustered_mean(drawn.rewards),
    'gold_reward_before': evaluator.clustered_mean(before.rewards),
    'gold_reward_after': evaluator.clustered_mean(after.rewards),
    'gain': rise,
    'win_rate': evaluator.win_rate(after.rewards, before.rewards),
    **evaluations.kl,
  }
  return {
    **{name: dataclasses.asdict(estimate) for name, estimate in estimates.items()},
    'gain_in_standard_errors': rise.mean / rise.error,
    'reward_accuracy': records[-1].get('eval/reward_accuracy'),
    'response_tokens_before': float(before.batch.response_length.mean()),
    'response_tokens_after': float(after.batch.response_length.mean()),
    'steps': records[-1]['step'],
    'frontier': [dataclasses.asdict(point) for point in evaluations.points],
  }


def _show(setup: Setup, objective: objectives.Objective, params: Params, evaluations: Evaluations) -> None:
  """Draws the figure, and writes the most probable answers before and after, side by side."""
  before, after = evaluations.before, evaluations.after
  title = f'{objective.name}: gold reward {before.rewards.mean():.2f} → {after.rewards.mean():.2f}'
  records = metrics.read_jsonl(setup.workdir / 'metrics.jsonl')
  quickstart_report.draw_figure(
    setup.workdir / 'figure.png', title, records, evaluations.points, before.rewards, after.rewards
  )
  prompts = before.prompts[:SHOWN]
  policy = setup.policy(group=len(prompts), samples=1, strategy=strategies.greedy())
  sides = [policy.draw(side, prompts, jax.random.key(0)) for side in (setup.reference, params)]
  quickstart_report.write_samples(setup.workdir / 'samples.md', title, *sides)


def define_flags() -> None:
  """One flag for each setting."""
  define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
  for field in dataclasses.fields(Settings):
    define[field.type](field.name, field.default, field.metadata['text'])


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  try:
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Settings)}
    run(Settings(**values), rewards.vader())
  except (ImportError, OSError, ValueError, loop.NonFiniteError) as error:
    sys.exit(f'quickstart: {error}')


def start() -> None:
  """The program; flags are defined here and not on import, because they are global."""
  define_flags()
  app.run(main)
