"""The DPOTrainer of TRL in its own training loop, whose callbacks wait for turns; started by bench.peers.training.

  python -m bench.peers.trl_training FOLDER [--compact] [--grouped]

On a CPU, its fused head scores the tokens of prompts, too, and masks them afterwards. --compact has it select the
tokens of responses first, as it does on GPUs. An epoch has batches of pairs in their order, padded to the longest of
them; --grouped has batches of similar lengths, which the trainer offers.
"""

import argparse
import sys
import tempfile

import datasets
import tokenizers
import torch
import transformers
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils

from bench.peers import protocol


class Trainer(DPOTrainer):
  """Takes pairs that are tokenised, and keeps the loss of the last step."""

  loss = 0.0

  def _prepare_dataset(self, dataset, *args, **options):
    return dataset

  def _get_train_sampler(self, train_dataset=None):
    if self.args.train_sampling_strategy == 'group_by_length':
      return super()._get_train_sampler(train_dataset)
    return torch.utils.data.SequentialSampler(self.train_dataset)

  def training_step(self, *args, **options):
    loss = super().training_step(*args, **options)
    self.loss = loss.item()
    return loss


class Turns(transformers.TrainerCallback):
  """Holds the trainer back until a step is wanted."""

  def __init__(self, turns: protocol.Turns, batch: int):
    self.turns, self.batch = turns, batch
    self.trainer: Trainer | None = None

  def on_step_begin(self, args, state, control, **options):
    if not self.turns.begin_step():
      sys.exit()

  def on_step_end(self, args, state, control, **options):
    self.turns.end_step(self.trainer.loss, self.batch)


def special_tokens() -> transformers.PreTrainedTokenizerFast:
  """A tokenizer for the ids of special tokens, which are all that the trainer asks it."""
  model = tokenizers.models.WordLevel({'<pad>': 0, '<s>': 1, '</s>': 2}, unk_token='<pad>')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model), pad_token='<pad>', bos_token='<s>', eos_token='</s>'
  )


def work(case: protocol.Case, pairs: list[protocol.Pair], options: argparse.Namespace) -> protocol.Work | None:
  """The work of a turn; None if batches are drawn."""
  if options.grouped:
    return None
  found = protocol.Work()
  for start in range(0, len(pairs) if case.epoch else case.batch, case.batch):
    batch = pairs[start : start + case.batch]
    length = max(len(pair.prompt) + max(map(len, pair.responses)) for pair in batch)
    scored = sum(map(len, (response for pair in batch for response in pair.responses)))
    found += protocol.rows(2 * len(batch), length, scored / (2 * len(batch)) if options.compact else length - 1)
  return found


def configuration(case: protocol.Case, options: argparse.Namespace, folder: str) -> DPOConfig:
  return DPOConfig(
    output_dir=folder,
    beta=case.beta,
    per_device_train_batch_size=case.batch,
    train_sampling_strategy='group_by_length' if options.grouped else 'random',
    learning_rate=case.learning_rate,
    lr_scheduler_type='constant',
    weight_decay=0.0,
    max_grad_norm=1.0,
    max_length=None,
    num_train_epochs=10**6,
    bf16=case.dtype == 'bfloat16',
    use_cpu=True,
    gradient_checkpointing=False,
    precompute_ref_log_probs=case.cached,
    dataloader_pin_memory=False,
    remove_unused_columns=False,
    logging_strategy='no',
    save_strategy='no',
    report_to='none',
    disable_tqdm=True,
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('folder')
  parser.add_argument('--compact', action='store_true')
  parser.add_argument('--grouped', action='store_true')
  options = parser.parse_args()
  case, pairs = protocol.read(options.folder)
  turns = protocol.Turns(case.warm_up, len(pairs) // case.batch if case.epoch else 1)
  turns.work = work(case, pairs, options)
  if options.compact:  # the fused head alone asks this module; its kernels stay those of a CPU
    utils._use_triton = lambda device: True
  rows = datasets.Dataset.from_dict(
    {
      'prompt_ids': [pair.prompt.tolist() for pair in pairs],
      'chosen_ids': [pair.chosen.tolist() for pair in pairs],
      'rejected_ids': [pair.rejected.tolist() for pair in pairs],
      'length': [len(pair.prompt) + max(map(len, pair.responses)) for pair in pairs],
    }
  )
  models = {
    name: transformers.AutoModelForCausalLM.from_pretrained(
      f'{options.folder}/{name}', dtype=torch.float32, attn_implementation='sdpa'
    )
    for name in (protocol.POLICY, protocol.REFERENCE)
  }
  callback = Turns(turns, case.batch)
  with tempfile.TemporaryDirectory() as folder:
    callback.trainer = Trainer(
      model=models.pop(protocol.POLICY),
      ref_model=models.pop(protocol.REFERENCE),
      args=configuration(case, options, folder),
      train_dataset=rows,
      processing_class=special_tokens(),
      callbacks=[callback],
    )
    if case.cached:  # it has computed the log-probabilities by now
      callback.trainer.ref_model = None
    callback.trainer.train()


if __name__ == '__main__':
  main()
