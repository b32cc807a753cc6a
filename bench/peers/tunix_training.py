"""The DPOTrainer of Tunix in its own training loop, whose batches wait for turns; started by bench.peers.training.

  python -m bench.peers.tunix_training FOLDER

All batches have one shape, because the trainer pads to given lengths. In bfloat16, weights and moments are bfloat16,
too: the trainer offers nothing else.
"""

from collections.abc import Iterator
import json
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params as llama_params
from tunix.sft.dpo import dpo_trainer

from bench.peers import protocol

Batches = list[dpo_trainer.TrainingInput]


class CachingTrainer(dpo_trainer.DPOTrainer):
  """Prepares batches, with what the reference has to tell, before they are trained on."""

  def prepare(self, batches: Batches) -> None:
    """Prepares all batches, and forgets the reference."""
    self.prepared = {id(batch): super(CachingTrainer, self)._prepare_inputs(batch) for batch in batches}
    self.ref_model = None

  def _prepare_inputs(self, training_input):
    return self.prepared[id(training_input)]


def load(folder: str, dtype: str) -> nnx.Module:
  with open(f'{folder}/config.json', encoding='utf-8') as file:
    entries = json.load(file)
  config = llama.ModelConfig(
    num_layers=entries['num_hidden_layers'],
    vocab_size=entries['vocab_size'],
    embed_dim=entries['hidden_size'],
    hidden_dim=entries['intermediate_size'],
    num_heads=entries['num_attention_heads'],
    head_dim=entries['head_dim'],
    num_kv_heads=entries['num_key_value_heads'],
    norm_eps=entries['rms_norm_eps'],
    rope_theta=int(entries['rope_theta']),
    weight_tying=entries['tie_word_embeddings'],
  )
  return llama_params.create_model_from_safe_tensors(folder, config, dtype=jnp.dtype(dtype))


def make_batches(case: protocol.Case, pairs: list[protocol.Pair]) -> Batches:
  prompt = max(len(pair.prompt) for pair in pairs)
  response = max(len(response) for pair in pairs for response in pair.responses)

  def batch(pairs: list[protocol.Pair]) -> dpo_trainer.TrainingInput:
    prompts = padded([pair.prompt[::-1] for pair in pairs], prompt)[..., ::-1]  # on the left
    chosen, rejected = (padded([pair.responses[side] for pair in pairs], response) for side in range(2))
    return dpo_trainer.TrainingInput(*prompts, *chosen, *rejected)

  return [batch(pairs[start : start + case.batch]) for start in range(0, len(pairs), case.batch)]


def padded(rows: list[np.ndarray], length: int) -> np.ndarray:
  """Tokens and their mask, [2, rows, length], padded on the right."""
  found = np.zeros((2, len(rows), length), np.int32)
  for index, row in enumerate(rows):
    found[0, index, : len(row)], found[1, index, : len(row)] = row, 1
  return found


def stream(turns: protocol.Turns, trainer: dpo_trainer.DPOTrainer, batches: Batches) -> Iterator:
  """The batches, each when it is wanted. Asked for the next one, the trainer has done the last one."""
  count = 0
  while turns.begin_step():
    batch = batches[count % len(batches)]
    yield batch
    loss = trainer._prev_buffered_train_metrics.losses[-1]
    jax.block_until_ready((loss, nnx.state(trainer.model)))
    turns.end_step(float(loss), len(batch.prompt_ids))
    count += 1


def main(folder: str) -> None:
  case, pairs = protocol.read(folder)
  batches = make_batches(case, pairs)
  turns = protocol.Turns(case.warm_up, len(batches) if case.epoch else 1)
  prompt, response = batches[0].prompt_ids.shape[1], batches[0].chosen_ids.shape[1]
  count = 2 * (len(pairs) if case.epoch else case.batch)
  turns.work = protocol.rows(count, prompt + response, prompt + response)
  models = [load(f'{folder}/{name}', case.dtype) for name in (protocol.POLICY, protocol.REFERENCE)]
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(case.learning_rate, weight_decay=0.0))
  config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, beta=case.beta)
  trainer = (CachingTrainer if case.cached else dpo_trainer.DPOTrainer)(*models, tx, config)
  models.clear()
  if case.cached:
    trainer.prepare(batches)
  trainer.train(stream(turns, trainer, batches))


if __name__ == '__main__':
  main(sys.argv[1])
