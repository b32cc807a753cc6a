"""The side of transformers in bench.peers.sampling, which starts it in an environment of its own.

  python transformers_sampling.py MODEL DTYPE NEW_TOKENS PROMPTS

PROMPTS is a JSON list of lists of token ids. It draws once for each line of standard input. The log-probabilities of
the drawn tokens come from a forward pass that is not timed.
"""

import json
import pathlib
import sys
import time

import torch
import transformers


def _peak_mib() -> float:
  status = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith('VmHWM'))


def main(folder: str, dtype: str, new_tokens: int, prompts: list[list[int]]) -> None:
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=getattr(torch, dtype), attn_implementation='sdpa'
  ).eval()
  ids = torch.tensor(prompts)
  peak = None
  for _ in sys.stdin:
    start = time.perf_counter()
    sequences = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      eos_token_id=None,
      pad_token_id=0,
      max_new_tokens=new_tokens,
    )
    seconds = time.perf_counter() - start
    peak = peak or _peak_mib()  # later, it would count the forward pass below
    drawn = sequences[:, ids.shape[1] :]
    with torch.no_grad():
      logits = model(sequences, logits_to_keep=new_tokens + 1).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0].mean(-1)
    result = {'seconds': seconds, 'tokens': drawn.numel(), 'logps': logps.tolist(), 'peak_mib': peak}
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
