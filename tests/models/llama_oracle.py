"""A float64 Llama, written from the equations: one sequence, one token and one head at a time."""

import numpy as np


def hidden(params, config, tokens):
  """Hidden states after the final norm, [T, D] float64, of one plain sequence of token ids."""
  params = _float64(params)
  x = params['embed']['embedding'][np.asarray(tokens)]
  for i in range(config.layers):
    x = _layer(_index(params['layers'], i), config, x)
  return _rms_norm(x, params['final_norm']['scale'], config.norm_epsilon)


def logits(params, config, tokens):
  """Next-token logits [T, V]."""
  params = _float64(params)
  kernel = params['embed']['embedding'].T if config.tied_embeddings else params['unembed']['kernel']
  return hidden(params, config, tokens) @ kernel


def response_states(params, config, batch):
  """[B, N, R, D]: what predicts each response token, from N full forwards of prompt + response; 0 at padding."""
  rows, samples, size = batch.response.shape
  out = np.zeros((rows, samples, size, config.width))
  for b in range(rows):
    prompt = list(batch.prompt[b, : batch.prompt_length[b]])
    for n in range(samples):
      length = batch.response_length[b, n]
      states = hidden(params, config, prompt + list(batch.response[b, n, :length]))
      out[b, n, :length] = states[len(prompt) - 1 : len(prompt) - 1 + length]
  return out


def _layer(params, config, x):
  attention, mlp = params['attention'], params['mlp']
  normed = _rms_norm(x, params['attention_norm']['scale'], config.norm_epsilon)
  heads, kv_heads, width = config.heads, config.kv_heads, config.head_width
  query = (normed @ attention['query']['kernel']).reshape(-1, heads, width)
  key = (normed @ attention['key']['kernel']).reshape(-1, kv_heads, width)
  value = (normed @ attention['value']['kernel']).reshape(-1, kv_heads, width)
  out = np.zeros_like(query)
  for t in range(len(x)):
    for head in range(heads):
      group = head // (heads // kv_heads)
      turned = _turn(query[t, head], t, config.rope_theta)
      scores = np.array([turned @ _turn(key[s, group], s, config.rope_theta) for s in range(t + 1)]) / np.sqrt(width)
      weights = np.exp(scores - scores.max())
      out[t, head] = (weights / weights.sum()) @ value[: t + 1, group]
  x = x + out.reshape(len(x), -1) @ attention['output']['kernel']
  normed = _rms_norm(x, params['mlp_norm']['scale'], config.norm_epsilon)
  gate = normed @ mlp['gate']['kernel']
  return x + (gate / (1 + np.exp(-gate)) * (normed @ mlp['up']['kernel'])) @ mlp['down']['kernel']


def _turn(vector, position, theta):
  """Pairs (v_i, v_{i + H/2}) as complex numbers, times exp(i position theta^(-2 i / H))."""
  half = len(vector) // 2
  angle = position * theta ** (-2 * np.arange(half) / len(vector))
  turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angle)
  return np.concatenate([turned.real, turned.imag])


def _rms_norm(x, scale, epsilon):
  return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def _float64(tree):
  return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)


def _index(tree, i):
  return {k: _index(v, i) for k, v in tree.items()} if isinstance(tree, dict) else tree[i]
