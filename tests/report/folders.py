"""Folders as alignjax writes them, made by hand: runs, an evaluation, a sweep and a comparison."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from alignjax.run import settings

NASTY = '<script>alert(1)</script> & "quoted"'


def config(**overrides: Any) -> settings.Config:
  return settings.Config(**{'model': 'models/tiny', 'data': ('pairs.jsonl',), 'steps': 30} | overrides)


def write_json(path: pathlib.Path, content: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def write_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def records(steps: int, scale: float = 1.0) -> list[dict[str, Any]]:
  """Metrics of a run; step 7 and step 8 are skipped, and every fifth step is evaluated."""
  found = []
  for step in range(1, steps + 1):
    bad = step in (7, 8)
    row = {
      'step': step,
      'loss': 'nan' if step == 7 else scale / step,  # at step 8 only the gradient is not finite
      'gradient_norm': 'nan' if bad else 2.0 * scale,
      'learning_rate': 1e-6 * step,
      'logp_chosen': -60.0 - step,
      'logp_rejected': -70.0 - 2 * step,
      'reward_accuracy': 0.5 + step / 100,
      'tokens': 100,
      'skipped': max(0, min(step, 8) - 6),
      'time/seconds': 0.5,
      'time/tokens_per_second': 200.0,
      'time/peak_memory_gib': 1.5,
    }
    found.append(row | ({'eval/loss': scale / step, 'eval/reward_accuracy': 0.75} if step % 5 == 0 else {}))
  return found


def about(**entries: Any) -> dict[str, Any]:
  return {'devices': '1 x cpu, 1 processes', 'versions': {'jax': '0.12.0'}, 'steps': 30, **entries}


def finding(name: str, severity: str = 'warning', seen: str = 'seen') -> dict[str, str]:
  return {'name': name, 'severity': severity, 'seen': seen, 'advice': 'do something'}


def write_run(folder: pathlib.Path, steps: int = 30, scale: float = 1.0, **overrides: Any) -> pathlib.Path:
  """A run that has done `steps` of 30 updates."""
  write_json(folder / 'config.json', dataclasses.asdict(config(workdir=str(folder), **overrides)))
  write_lines(folder / 'metrics.jsonl', records(steps, scale))
  doctor = [finding('length_bias', 'note'), finding('duplicate_examples', 'error', NASTY)]
  write_json(folder / 'about.json', about(summary='objective  dpo()\nmodel      tiny, 7 parameters', doctor=doctor))
  (folder / 'model').mkdir()
  (folder / 'model' / 'model.safetensors').write_bytes(bytes(2048))
  return folder


def write_rollouts(folder: pathlib.Path) -> pathlib.Path:
  """An on-policy run of three rounds; the last one repeats a prompt of the first."""
  values = dataclasses.asdict(config(workdir=str(folder), data=(), prompts=('p.jsonl',), objective='rlhf(beta=0.05)'))
  write_json(folder / 'config.json', values)
  rounds = [
    {
      'step': n + 1,
      'loss': 0.1,
      'rollout/round': float(n),
      'rollout/reward': 0.1 * n,
      'rollout/reward_error': 0.05,
      'rollout/kl_exact': 0.5 * n,
      'rollout/length': 9.0,
      'time/seconds': 1.0,
      'time/share_sample': 0.75,
      'time/share_train': 0.25,
    }
    for n in range(3)
  ]
  write_lines(folder / 'metrics.jsonl', rounds)
  for number, prompt in enumerate(('Why?', 'Who?', 'Why?')):
    rows = [{'prompt': prompt, 'response': f'answer {number}.{n} {NASTY}', 'score': 0.25 * n} for n in range(2)]
    write_lines(folder / 'rollouts' / f'round_{number:06d}.jsonl', rows)
  return folder


def write_evaluation(folder: pathlib.Path, names: Sequence[str]) -> pathlib.Path:
  """An evaluation of models against the reference `sft`."""
  models = {
    name: {
      'reward': {'mean': 0.1 * i, 'error': 0.02},
      'kl': {'mean': float(i), 'error': 0.1},
      'distinct_1': 0.5,
      **({'win_rate': {'mean': 0.5 + 0.1 * i, 'error': None}} if i else {}),
    }
    for i, name in enumerate(('sft', *names))
  }
  best = [{'n': 2, 'kl': 0.2, 'reward': {'mean': 0.3, 'error': 0.01}, 'proxy': {'mean': 0.3, 'error': 0.01}}]
  fit = {'of': 'reward', 'law': 'rl', 'a': {'mean': 0.5, 'error': 0.1}, 'b': {'mean': 0.2, 'error': 0.1}, 'rms': 0.01}
  content = {'reference': 'sft', 'prompts': 5, 'samples': 2, 'models': models, 'best_of_n': best}
  write_json(folder / 'evaluation.json', content | {'over_optimisation': {'runs/a': [fit]}})
  responses = {name: {'response': f'{NASTY} of {name}', 'reward': 0.5} for name in models}
  prompt = [{'role': 'user', 'content': NASTY}]
  write_lines(folder / 'samples.jsonl', [{'prompt': prompt, 'responses': responses}])
  write_json(folder / 'about.json', about(command='alignjax evaluate --models=...'))
  return folder


def write_sweep(folder: pathlib.Path) -> pathlib.Path:
  """A sweep of two settings and two seeds; one run failed, and one has not ended."""
  ended = {}
  for beta, seed, code in ((0.1, 0, 0), (0.1, 1, 0), (0.3, 0, 0), (0.3, 1, 1)):
    name = f'beta={beta},seed={seed}'
    ended[name] = {'arguments': [], 'code': code}
    if code:
      (folder / f'{name}.log').write_text('error: no space left <b>\n')
    else:
      write_run(folder / name, scale=1.0 + seed + 10 * beta, seed=seed, objective=f'dpo(beta={beta})')
  del ended['beta=0.3,seed=0']
  write_json(folder / 'sweep.json', ended)
  write_json(folder / 'about.json', about(command="alignjax sweep --grid='beta=0.1,0.3;seed=0,1' --out=s"))
  return folder
