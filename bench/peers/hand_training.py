"""A loop of DPO as one writes it by hand with transformers: eager, with logits of response positions alone.

  python -m bench.peers.hand_training FOLDER

A batch is its chosen rows and then its rejected rows, padded on the right, which needs no mask: no token sees the
padding behind it. An epoch has its pairs sorted by length. bench.peers.training starts it.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
import transformers

from bench.peers import protocol


class Batch(NamedTuple):
  """Rows of prompts with responses: B chosen ones, then B rejected ones."""

  ids: torch.Tensor  # [2 * B, L]
  predicts: torch.Tensor  # [2 * B, L - 1] bool, whether the position predicts a token of the response
  row: torch.Tensor  # [tokens of responses], the row of each

  @property
  def targets(self) -> torch.Tensor:
    return self.ids[:, 1:][self.predicts]


def make_batches(case: protocol.Case, pairs: list[protocol.Pair]) -> list[Batch]:
  if case.epoch:
    pairs = sorted(pairs, key=lambda pair: len(pair.prompt) + max(map(len, pair.responses)))
  return [_batch(pairs[start : start + case.batch]) for start in range(0, len(pairs), case.batch)]


def _batch(pairs: list[protocol.Pair]) -> Batch:
  rows = [(pair.prompt, pair.responses[side]) for side in range(2) for pair in pairs]
  length = max(len(prompt) + len(response) for prompt, response in rows)
  ids, predicts = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length - 1), bool)
  for row, (prompt, response) in enumerate(rows):
    end = len(prompt) + len(response)
    ids[row, :end] = np.concatenate([prompt, response])
    predicts[row, len(prompt) - 1 : end - 1] = True
  return Batch(*map(torch.from_numpy, (ids, predicts, predicts.nonzero()[0])))


class Loop:
  """The models, the optimizer and the cache of the reference."""

  def __init__(self, folder: str, case: protocol.Case):
    self.case = case
    self.policy, self.reference = (
      transformers.AutoModelForCausalLM.from_pretrained(
        f'{folder}/{name}', dtype=torch.float32, attn_implementation='sdpa'
      )
      for name in (protocol.POLICY, protocol.REFERENCE)
    )
    self.policy.train()
    self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=case.learning_rate, weight_decay=0.0, fused=True)
    self.cache: list[torch.Tensor] = []

  def fill_cache(self, batches: list[Batch]) -> None:
    """Computes what the reference has to tell, and forgets the reference."""
    self.cache = [self.reference_logps(batch) for batch in batches]
    self.reference = None

  def logps(self, model: transformers.PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The log-probability of each response, [2 * B]."""
    with torch.autocast('cpu', torch.bfloat16, enabled=self.case.dtype == 'bfloat16'):
      states = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
      logits = model.lm_head(states[:, :-1][batch.predicts])
    losses = functional.cross_entropy(logits.float(), batch.targets, reduction='none')
    return torch.zeros(len(batch.ids)).index_add(0, batch.row, -losses)

  def reference_logps(self, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
      return self.logps(self.reference, batch)

  def step(self, index: int, batch: Batch) -> float:
    """An update; returns its loss."""
    reference = self.cache[index] if self.cache else self.reference_logps(batch)
    log_ratio = self.logps(self.policy, batch) - reference
    chosen, rejected = log_ratio.chunk(2)
    loss = -functional.logsigmoid(self.case.beta * (chosen - rejected)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return loss.item()


def main(folder: str) -> None:
  case, pairs = protocol.read(folder)
  batches, loop, count = make_batches(case, pairs), Loop(folder, case), 0
  turns = protocol.Turns(case.warm_up, len(batches) if case.epoch else 1)
  works = [protocol.rows(*batch.ids.shape, len(batch.row) / len(batch.ids)) for batch in batches]
  turns.work = sum(works, protocol.Work()) if case.epoch else works[0]
  if case.cached:
    loop.fill_cache(batches)
  while turns.begin_step():
    index = count % len(batches)
    turns.end_step(loop.step(index, batches[index]), len(batches[index].ids) // 2)
    count += 1


if __name__ == '__main__':
  main(sys.argv[1])
