"""Writes objectives.json: what the authors' released code of three methods computes, on a few small pairs.

The formulas are written down here once more, in plain float64 numpy from a reading of that code, with gradients in
closed form; nothing of the library or of its oracles is used. Run by hand:

  python tests/golden/make_objectives.py
"""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def exact(values: np.ndarray) -> np.ndarray:
  """Rounded to numbers that float32 represents."""
  return np.round(values * 256) / 256


def log_sigmoid(x: np.ndarray) -> np.ndarray:
  return -np.logaddexp(0.0, -x)


def sigmoid(x: np.ndarray) -> np.ndarray:
  return 1.0 / (1.0 + np.exp(-x))


def lengths(generator: np.random.Generator, pairs: int, size: int) -> np.ndarray:
  return generator.integers(1, size + 1, (pairs, 2))


def response_sums(values: np.ndarray, length: np.ndarray) -> np.ndarray:
  """[B, 2] of [B, 2, R]."""
  total = np.zeros(length.shape)
  for row, side in np.ndindex(*length.shape):
    total[row, side] = values[row, side, : length[row, side]].sum()
  return total


# alpha-DPO: moving averages from zero, updated before use, of the mean and of the unbiased standard deviation.


def alpha_dpo(steps: list[dict], beta: float, ratio: float, alpha: float, smoothing: float) -> list[dict]:
  average, deviation, expected = 0.0, 0.0, []
  for step in steps:
    policy = response_sums(step['logp'], step['length']) / step['length']
    reference = response_sums(step['reference_logp'], step['length']) / step['length']
    ratio_policy, ratio_reference = policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1]
    gap = ratio_policy - ratio_reference
    average = 0.9 * average + 0.1 * gap.mean()
    deviation = 0.9 * deviation + 0.1 * gap.std(ddof=1)
    margin = ratio + alpha * (gap - average) / deviation
    logit = beta * (ratio_policy - margin)
    expected.append(
      {
        'mean': average,
        'deviation': deviation,
        'loss': -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit),
        'slope': -beta * ((1 - smoothing) * sigmoid(-logit) - smoothing * sigmoid(logit)),  # d loss / d mean log pi_w
      }
    )
  return expected


def make_alpha_dpo() -> dict:
  generator = np.random.default_rng(11)
  steps = []
  for drift in (0.05, 0.2, 0.5, 1.0):
    reference = -generator.exponential(1.5, (5, 2, 6))
    logp = exact(reference + drift * generator.standard_normal(reference.shape))
    steps.append({'logp': logp, 'reference_logp': exact(reference), 'length': lengths(generator, 5, 6)})
  settings = [
    {'beta': 2.5, 'gamma_beta_ratio': 0.6, 'alpha': 0.2, 'label_smoothing': 0.0},
    {'beta': 10.0, 'gamma_beta_ratio': 0.4, 'alpha': 0.05, 'label_smoothing': 0.0},
    {'beta': 2.0, 'gamma_beta_ratio': 0.25, 'alpha': 0.1, 'label_smoothing': 0.1},
  ]
  cases = [{'arguments': each, 'steps': alpha_dpo(steps, *each.values())} for each in settings]
  return {'steps': steps, 'cases': cases}


# Importance sampling: one weight for a pair, from both of its responses, clipped above at twice epsilon.


def importance_weighted_dpo(data: dict, beta: float, epsilon: float, stored: bool) -> dict:
  policy = response_sums(data['logp'], data['length'])
  reference = response_sums(data['reference_logp'], data['length'])
  writer = data['behaviour_logp'] if stored else reference
  log_weight = (policy[:, 0] - writer[:, 0]) + (policy[:, 1] - writer[:, 1])
  weight = np.exp(np.minimum(log_weight, 2 * epsilon))
  logit = beta * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1]))
  return {
    'weight': weight,
    'loss': -weight * log_sigmoid(logit),
    'slope': -weight * beta * sigmoid(-logit),  # d loss / d log pi_w: none through the weight
  }


def make_importance_weighted() -> dict:
  generator = np.random.default_rng(12)
  reference = -generator.exponential(1.5, (6, 2, 5))
  logp = exact(reference + 0.2 * generator.standard_normal(reference.shape))
  length = lengths(generator, 6, 5)
  behaviour = exact(response_sums(logp, length) + 0.4 * generator.standard_normal((6, 2)))
  data = {'logp': logp, 'reference_logp': exact(reference), 'length': length, 'behaviour_logp': behaviour}
  cases = []
  for epsilon in (0.25, 1.0):
    for stored in (True, False):
      setting = {'beta': 0.1, 'epsilon': epsilon, 'stored': stored}
      cases.append({'arguments': setting} | importance_weighted_dpo(data, **setting))
  return {**data, 'cases': cases}


# Risk-aware DPO: per position and part of the vocabulary, the reference's expectation of the log-ratio z = log p / q,
# over the ids that lie strictly above a quantile that counts ids.


def quantile(values: np.ndarray, level: float) -> float:
  ordered = np.sort(values)
  place = level * (len(ordered) - 1)
  low = int(np.floor(place))
  high = min(low + 1, len(ordered) - 1)
  return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def log_softmax(logits: np.ndarray) -> np.ndarray:
  shifted = logits - logits.max()
  return shifted - np.log(np.exp(shifted).sum())


def risk_at(log_p: np.ndarray, log_q: np.ndarray, confidence: float, split: bool) -> tuple[float, np.ndarray]:
  """The risk of one position, and its gradient with respect to the policy's logits."""
  p, q, z = np.exp(log_p), np.exp(log_q), log_p - log_q
  ids = np.arange(len(z))
  parts = [ids[: len(ids) // 2], ids[len(ids) // 2 :]] if split else [ids]
  kept = np.zeros(len(z), bool)
  for part in parts:
    kept[part] = z[part] > quantile(z[part], 1 - confidence)
  return float(np.sum(p[kept] * z[kept])), q * p[kept].sum() - p * kept


def ra_dpo(data: dict, confidence: float, split: bool, beta: float, alpha: float, variant: int) -> dict:
  logits, target, length = data['policy_logits'], data['target'], data['length']
  risk, margin = np.zeros(length.shape), np.zeros(length.shape)
  d_risk, d_margin = np.zeros(logits.shape), np.zeros(logits.shape)
  for row, side in np.ndindex(*length.shape):
    for place in range(length[row, side]):
      log_q = log_softmax(logits[row, side, place])
      log_p = log_softmax(data['reference_logits'][row, side, place])
      token = target[row, side, place]
      value, d_risk[row, side, place] = risk_at(log_p, log_q, confidence, split)
      risk[row, side] += value
      margin[row, side] += log_q[token] - log_p[token]
      d_margin[row, side, place] = -np.exp(log_q)
      d_margin[row, side, place, token] += 1
  difference = margin[:, 0] - margin[:, 1]
  if variant == 1:
    logit = difference - (risk[:, 1] - risk[:, 0])
    d_logit = np.stack([d_margin[:, 0] + d_risk[:, 0], -d_margin[:, 1] - d_risk[:, 1]], axis=1)
  else:
    logit = difference - alpha * (risk[:, 1] - risk[:, 0])
    d_logit = np.stack([d_margin[:, 0], -d_margin[:, 1] - alpha * d_risk[:, 1]], axis=1)
  slope = -beta * sigmoid(-beta * logit)
  return {'risk': risk, 'loss': -log_sigmoid(beta * logit), 'gradient': slope[:, None, None, None] * d_logit}


def make_ra_dpo() -> dict:
  generator = np.random.default_rng(13)
  # An odd vocabulary, so that its parts differ in size, and large enough that 0.95 and 0.99 differ in each of them.
  shape = (2, 2, 2, 45)
  reference = exact(2.0 * generator.standard_normal(shape))
  data = {
    'reference_logits': reference,
    'policy_logits': exact(reference + 0.7 * generator.standard_normal(shape)),
    'target': generator.integers(0, shape[-1], shape[:-1]),
    'length': np.array([[2, 1], [1, 2]]),
  }
  cases = []
  for confidence in (0.95, 0.99, 0.5):
    for split in (True, False):
      for variant in (1, 2):
        setting = {'confidence': confidence, 'split': split, 'beta': 0.5, 'alpha': 0.7, 'variant': variant}
        cases.append({'arguments': setting} | ra_dpo(data, **setting))
  return {**data, 'cases': cases}


def plain(value: object) -> object:
  """For JSON: arrays as lists, numbers to 10 digits."""
  if isinstance(value, dict):
    return {key: plain(each) for key, each in value.items()}
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, list):
    return [plain(each) for each in value]
  return float(f'{value:.10g}') if isinstance(value, float) else value


def main() -> None:
  golden = {
    'alpha_dpo_released': make_alpha_dpo(),
    'importance_weighted': make_importance_weighted(),
    'ra_dpo_released': make_ra_dpo(),
  }
  entries = ',\n'.join(f'{json.dumps(name)}: {json.dumps(plain(value))}' for name, value in golden.items())
  (HERE / 'objectives.json').write_text('{\n' + entries + '\n}\n', encoding='utf-8')


if __name__ == '__main__':
  main()
