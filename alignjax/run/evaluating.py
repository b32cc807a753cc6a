"""Measures models on prompts: draws responses, scores them, and estimates the KL from a reference model.

Everything is kept in `parts`, so an evaluation that is started again continues.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np

from alignjax import judges, numerics, rewards, stats
from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization
from alignjax.evaluation import evaluator, summary
from alignjax.judges import base as judging
from alignjax.models import base, checkpoint_io, fingerprints, transformer
from alignjax.parallel import mesh as parallel_mesh
from alignjax.parallel import rules
from alignjax.run import checkpoint_export, locations, parts
from alignjax.sampling import text
from alignjax.training import processes, step_folders
from alignjax.types import Params, PreferenceBatch

CHECKPOINTS = 'checkpoints'  # the folder of a run's checkpoints
CHUNK = 1024  # response tokens whose logits exist at once


class Subject(NamedTuple):
  """A model to evaluate."""

  name: str
  identity: str  # two models of one identity have the same weights
  open: Callable[[], contextlib.AbstractContextManager[str]]  # provides its folder in Hugging Face format
  run: str = ''  # the folder of the run, if it is a checkpoint
  step: int = 0


def subjects(location: str, flag: str) -> list[Subject]:
  """The models that a setting names: a folder or a name on the Hub, or all checkpoints in runs/<name>/checkpoints.

  Args:
    location: what the setting names.
    flag: the setting; errors name it.

  Raises:
    ValueError: there is no such model, or checkpoints are to be read by several processes.
  """
  path = pathlib.Path(location)
  return _checkpoints(path) if path.name == CHECKPOINTS and path.is_dir() else [subject(location, flag)]


def subject(location: str, flag: str) -> Subject:
  """The model in a folder or on the Hub. Args, Raises: see `subjects`."""
  folder = locations.resolve(location, flag)
  identity = processes.from_first(lambda alive: fingerprints.of(folder, alive=alive))
  return Subject(location, identity, lambda: contextlib.nullcontext(folder))


def _checkpoints(folder: pathlib.Path) -> list[Subject]:
  if jax.process_count() > 1:
    raise ValueError(
      f'{folder}: one process alone can read checkpoints, and there are {jax.process_count()}: write their models with '
      'alignjax export --step=..., and name these'
    )
  steps = step_folders.steps(folder)
  if not steps:
    raise ValueError(f'{folder}: holds no checkpoint')
  workdir = str(folder.parent)

  @contextlib.contextmanager
  def exported(step: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix='alignjax_evaluate_') as to:
      checkpoint_export.export(workdir, to, step)
      yield f'{to}/model'

  def checkpoint(step: int) -> Subject:
    saved = (folder / str(step)).stat().st_mtime_ns
    return Subject(f'{folder}/{step}', f'{workdir} {step} {saved}', lambda: exported(step), workdir, step)

  return [checkpoint(step) for step in steps]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured.

  Attributes:
    prompts: the prompts; `fields` holds what rewards read.
    options: how responses are drawn.
    own_distribution: whether this draws from the model's own distribution, so that the KL can be estimated.
    rewards: the rewards by name, 'reward' and perhaps 'proxy'.
    judges: the judges by name, perhaps 'judge' and 'second_judge'.
    compute_dtype: dtype of activations.
    made_of: further settings that the results depend on, in JSON types.
  """

  prompts: Sequence[rows.Example]
  options: text.Options
  own_distribution: bool
  rewards: Mapping[str, rewards.Reward]
  judges: Mapping[str, judges.Judge]
  compute_dtype: str
  made_of: Mapping[str, Any]

  @functools.cached_property
  def prompts_hash(self) -> str:
    """A hash of the prompts and their fields."""
    contents = [(each.prompt, each.responses, sorted(each.fields.items())) for each in self.prompts]
    return hashlib.sha256(json.dumps(contents, default=str).encode()).hexdigest()


class _Loaded(NamedTuple):
  """A model on the devices, sharded as for training."""

  tokenizer: tokenization.Tokenizer
  model: base.LanguageModel
  params: Params
  prompts: Sequence[Sequence[int]]  # the prompts in its tokens

  def is_like(self, other: '_Loaded') -> bool:
    """Whether both are models of one architecture that read the same tokens."""
    same = self.model.config == other.model.config and self.tokenizer.end_ids == other.tokenizer.end_ids
    return same and self.prompts == other.prompts


class _Programs(NamedTuple):
  """Compiled programs for all models like one."""

  of: _Loaded  # without parameters
  sampler: text.TextSampler
  kl_step: Callable[[Params, Params, PreferenceBatch], stats.StatTable]


class Evaluation:
  """Measures models, one after another. All processes call it together.

  Args:
    plan: what is measured.
    reference: the reference model. It stays in memory once a KL has been computed.
    folder: where the parts are kept.
    announce: called with progress messages.
  """

  def __init__(self, plan: Plan, reference: Subject, folder: pathlib.Path, announce: Callable[[str], None]):
    self._plan, self._reference, self._announce = plan, reference, announce
    self._parts = parts.Parts(folder)
    self._mesh = parallel_mesh.make_mesh()
    self._stack = contextlib.ExitStack()
    self._compiled: _Programs | None = None  # of the last model
    self._loaded_reference = functools.cache(lambda: self._load(reference, self._stack))

  def close(self) -> None:
    """Removes temporary files."""
    self._stack.close()

  def measure(self, subject: Subject) -> summary.Measured:
    """Measures a model, or reads what has been measured of it.

    Raises:
      ValueError: the model or a prompt cannot be used.
      RewardError: a reward fails.
      JudgeError: a judge fails.
    """
    plan, drawn_of = self._plan, self._drawn_of(subject)
    with contextlib.ExitStack() as stack:
      own = functools.cache(lambda: self._load(subject, stack))
      load = self._loaded_reference if subject == self._reference else own
      drawn = self._drawn(subject, load)
      of = drawn_of | {'reference': self._reference.identity}
      measured = (
        self._part(subject, 'kl', of, lambda: self._diverge(load(), drawn['ids'])) if plan.own_distribution else {}
      )
    scores = {
      name: self._part(subject, name, drawn_of | _of_reward(reward), functools.partial(self._score, reward, drawn))
      for name, reward in plan.rewards.items()
    }
    return summary.Measured(
      name=subject.name,
      ids=drawn['ids'],
      finished=np.array(drawn['finished'], bool),
      rewards={name: np.array(score['total']) for name, score in scores.items()},
      parts={name: np.array(values) for score in scores.values() for name, values in score['parts'].items()},
      kl={name: np.array(values) for name, values in measured.items() if name != 'entropy'},
      entropy=np.array(measured['entropy']) if measured else None,
      judged=self._judged(subject, drawn),
      run=subject.run,
      step=subject.step,
      texts=drawn['text'],
    )

  def given(self) -> np.ndarray | None:
    """Rewards of the first response of each row, [B, 1]; None unless all rows have responses.

    Raises:
      RewardError: the reward fails.
    """
    if not all(example.responses for example in self._plan.prompts):
      return None
    made_of = self._drawn_of(self._reference)
    reward = self._plan.rewards['reward']

    score = functools.partial(self._score, reward, self._of_data())
    return np.array(self._parts.get('data.reward', made_of | _of_reward(reward), score)['total'])

  def _of_data(self) -> dict[str, Any]:
    """The first response of each row, like drawn ones."""
    with self._reference.open() as folder:
      tokenizer = self._tokenizer(folder)
    texts = [[rows.text_of(example.responses[0])] for example in self._plan.prompts]
    ids = [[list(tokenizer.encode(each.prompt, each.responses[:1]).responses[0])] for each in self._plan.prompts]
    return {'text': texts, 'ids': ids, 'finished': [[True]] * len(ids)}

  def _judged(self, subject: Subject, drawn: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The verdicts of judges on the responses against those of the reference, and of the data if all rows have some.

    Returns:
      Values [B, N] by their names in the summary.
    """
    if not self._plan.judges or subject == self._reference:
      return {}
    found: dict[str, np.ndarray] = {}
    others = {'': self._drawn(self._reference, self._loaded_reference)}
    if all(example.responses for example in self._plan.prompts):
      others['_data'] = self._of_data()
    of = self._drawn_of(subject) | {'reference': self._reference.identity}
    for suffix, other in others.items():
      wins = {}
      for name, judge in self._plan.judges.items():
        made_of = of | {'expression': judge.name, 'models': judge.fingerprint}
        compare = functools.partial(self._compare, judge, drawn, other)
        verdicts = self._part(subject, f'{name}{suffix}', made_of, compare)
        wins[name] = np.array(verdicts['wins'])
        found[f'win_rate{suffix}_{name}'] = wins[name]
        found[f'position_bias{suffix}_{name}'] = np.array(verdicts['position_bias'])
      if len(wins) == 2:
        found[f'agreement{suffix}'] = judging.agreement(*wins.values())
    return found

  def _compare(self, judge: judges.Judge, drawn: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Judges the n-th response to each prompt against the n-th other one, or against the only one."""
    shape = (len(self._plan.prompts), len(drawn['ids'][0]))
    ours, theirs = (
      [sample for row in self._samples(each) for sample in (row * shape[1])[: shape[1]]] for each in (drawn, other)
    )

    def compare(alive: Callable[[], None] | None) -> str:
      verdicts = judge.verdicts(list(zip(ours, theirs, strict=True)), tick=alive)
      values = {'wins': verdicts.wins, 'position_bias': verdicts.position_bias}
      return json.dumps({name: value.reshape(shape).tolist() for name, value in values.items()})

    return json.loads(processes.on_all(lambda: compare(None)) if judge.collective else processes.from_first(compare))

  def _drawn_of(self, subject: Subject) -> dict[str, Any]:
    """What the responses of a model depend on."""
    return {'model': subject.identity, 'prompts': self._plan.prompts_hash, **self._plan.made_of}

  def _drawn(self, subject: Subject, load: Callable[[], _Loaded]) -> dict[str, Any]:
    return self._part(subject, 'responses', self._drawn_of(subject), lambda: self._draw(load()))

  def _part(self, subject: Subject, name: str, made_of: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    def announced() -> Any:
      self._announce(f'{subject.name}: {name}')
      return make()

    return self._parts.get(f'{subject.name}.{name}', made_of, announced)

  def _tokenizer(self, folder: str) -> tokenization.Tokenizer:
    arguments = self._plan.options.template_arguments
    return tokenization.Tokenizer.load(folder).with_template_arguments(arguments)

  def _load(self, subject: Subject, stack: contextlib.ExitStack) -> _Loaded:
    folder = stack.enter_context(subject.open())
    config = checkpoint_io.load_config(folder, compute_dtype=self._plan.compute_dtype)
    model = transformer.build(config, rules.constraint(self._mesh))
    shardings = rules.param_shardings(self._mesh, jax.eval_shape(model.init, jax.random.key(0)))
    loading = checkpoint_io.Loading(together=processes.on_all)
    params = checkpoint_io.load_params(folder, config, shardings, loading)
    tokenizer = self._tokenizer(folder)
    prompts = [tokenizer.encode_prompt(each.prompt, self._plan.options.max_prompt) for each in self._plan.prompts]
    return _Loaded(tokenizer, model, params, prompts)

  def _programs(self, loaded: _Loaded) -> _Programs:
    """The programs of a model, those of the last one if it is like it."""
    if self._compiled is None or not loaded.is_like(self._compiled.of):
      self._compiled = _Programs(
        loaded._replace(params=None),
        text.TextSampler(loaded.model, loaded.tokenizer, self._mesh, self._plan.options),
        jax.jit(evaluator.build_kl_step(loaded.model, chunk=CHUNK)),
      )
    return self._compiled

  def _draw(self, loaded: _Loaded) -> dict[str, Any]:
    sampler = self._programs(loaded).sampler
    asked = [example.prompt for example in self._plan.prompts]
    found: dict[str, Any] = {'ids': [], 'text': [], 'finished': []}
    for part in sampler.draw(loaded.params, asked, jax.random.key(self._plan.options.seed)):
      for row, prompt in enumerate(part.prompts):
        lengths = part.samples.response_length[row]
        ids = [response[:size].tolist() for response, size in zip(part.samples.response[row], lengths, strict=True)]
        found['ids'].append(ids)
        found['text'].append([loaded.tokenizer.decode(each, continues=isinstance(prompt, str)) for each in ids])
        found['finished'].append(part.samples.finished[row].tolist())
    return found

  def _score(self, reward: rewards.Reward, drawn: Mapping[str, Any]) -> dict[str, Any]:
    samples = [sample for row in self._samples(drawn) for sample in row]
    shape = (len(self._plan.prompts), -1)

    def score(alive: Callable[[], None] | None) -> str:
      scores = reward.scores(samples, tick=alive)
      labelled = {reward.labels[name]: values.reshape(shape).tolist() for name, values in scores.parts.items()}
      return json.dumps({'total': scores.total.reshape(shape).tolist(), 'parts': labelled})

    return json.loads(processes.on_all(lambda: score(None)) if reward.collective else processes.from_first(score))

  def _samples(self, drawn: Mapping[str, Any]) -> list[list[rewards.Sample]]:
    """The responses to each prompt."""
    return [
      [
        rewards.Sample(example.prompt, response, len(ids), finished, example.fields)
        for response, ids, finished in zip(*row, strict=True)
      ]
      for example, *row in zip(self._plan.prompts, drawn['text'], drawn['ids'], drawn['finished'], strict=True)
    ]

  def _diverge(self, loaded: _Loaded, responses: Sequence[Sequence[Sequence[int]]]) -> dict[str, Any]:
    """Estimates of the KL, and the entropy, of each response; empty if the reference is another kind of model."""
    reference = self._loaded_reference()
    if not loaded.is_like(reference):
      self._announce('  no KL: the reference has another architecture or tokenizer')
      return {}
    step = self._programs(loaded).kl_step
    found: dict[str, list[Any]] = {'kl': [], 'kl_of_draws': [], 'entropy': []}
    for batch, count in self._batches(loaded.prompts, responses):
      placed = jax.device_put(batch, rules.batch_sharding(self._mesh))
      table = jax.tree.map(checkpoint_io.on_host, step(loaded.params, reference.params, placed).values)
      values = {name: np.asarray(value[:count], np.float64) for name, value in table.items()}
      mask = np.asarray(numerics.length_mask(batch.response_length[:count], batch.response.shape[-1]))
      log_ratio = values[stats.logp.name] - values[stats.reference_logp.name]
      found['kl'] += np.sum(values[stats.reverse_kl.name], axis=-1, where=mask).tolist()
      found['kl_of_draws'] += np.sum(log_ratio, axis=-1, where=mask).tolist()
      found['entropy'] += np.mean(values[stats.entropy.name], axis=-1, where=mask).tolist()
    return found

  def _batches(
    self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]
  ) -> Iterator[tuple[PreferenceBatch, int]]:
    """Batches of one shape, and the number of prompts in each; the rest of the last batch repeats a row."""
    options, shards = self._plan.options, parallel_mesh.batch_shards(self._mesh)
    size = -(-options.batch_size // shards) * shards
    longest = -(-max(map(len, prompts)) // text.PROMPT_MULTIPLE) * text.PROMPT_MULTIPLE
    for start in range(0, len(prompts), size):
      count = min(size, len(prompts) - start)
      rows_of = [start + min(i, count - 1) for i in range(size)]
      response = [
        _padded([responses[row][n] for row in rows_of], options.max_new_tokens) for n in range(options.samples)
      ]
      prompt = _padded([prompts[row] for row in rows_of], longest)
      ones = np.ones(size, np.float32)
      yield (
        PreferenceBatch(
          prompt=prompt[0],
          prompt_length=prompt[1],
          response=np.stack([ids for ids, _ in response], axis=1),
          response_length=np.stack([length for _, length in response], axis=1),
          label=ones,
          weight=ones,
        ),
        count,
      )


def _of_reward(reward: rewards.Reward) -> dict[str, Any]:
  """What scores depend on besides the responses."""
  return {'expression': reward.name, 'models': reward.fingerprints}


def _padded(sequences: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
  """The sequences, [n, size] int32, padded on the right, and their lengths, [n] int32."""
  ids = np.zeros((len(sequences), size), np.int32)
  for row, sequence in enumerate(sequences):
    ids[row, : len(sequence)] = sequence
  return ids, np.array([len(sequence) for sequence in sequences], np.int32)
