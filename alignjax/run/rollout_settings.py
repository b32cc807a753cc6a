"""Settings of on-policy training."""

import dataclasses

from alignjax import paths
from alignjax.run import fields


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
  """On-policy training."""

  prompts: tuple[str, ...] = fields.field(
    (),
    'Prompts to draw responses to, [form:]location as for `data`; responses in the rows are ignored. Empty: train on '
    '`data`.',
    on_resume='free',
    path=paths.READ,
  )
  rollout_objective: str = fields.field(
    '',
    'Objective of the responses drawn, such as kl_penalty(), beside `objective` of `data`: an update sums both '
    'gradients. Empty: `objective`, without `data`.',
    on_resume='identity',
  )
  reward: str = fields.field(
    '',
    'Reward of a response, needed with `prompts`, such as 0.7 * vader() - missing_end(1.0); empty: none.',
    on_resume='identity',
  )
  reward_fields: tuple[str, ...] = fields.field(
    (),
    'Columns of the prompts that rewards read, such as the answer of exact_answer("answer"); empty: none.',
    on_resume='identity',
  )
  reward_seconds: float = fields.field(
    600.0,
    'Longest time in seconds that one part of the reward may take for a round; 0: no limit.',
    on_resume='free',
    at_least=0,
  )
  samples: int = fields.field(2, 'Responses to each prompt.', on_resume='identity', at_least=1, at_most=4096)
  prompts_per_round: int = fields.field(
    64,
    'Prompts to which responses are drawn before they are trained on.',
    on_resume='identity',
    at_least=1,
    at_most=2**24,
  )
  minibatch: int = fields.field(
    0, 'Prompts per update; 0: all prompts of a round. It replaces `batch_size`.', on_resume='identity', at_least=0
  )
  inner_epochs: int = fields.field(1, 'Passes over the responses of a round.', on_resume='identity', at_least=1)
  sampling_batch: int = fields.field(
    0,
    'Prompts whose responses are drawn at once, to limit memory; 0: all prompts of a round.',
    on_resume='warns',
    at_least=0,
  )
  max_new_tokens: int = fields.field(
    128, 'Largest response in tokens; longer ones are cut off and have no end token.', on_resume='identity', at_least=1
  )
  temperature: float = fields.field(
    1.0,
    'Divisor of the logits in sampling. Score-function objectives, such as rlhf, need 1.',
    on_resume='identity',
  )
  top_k: int = fields.field(
    0, 'Draw only from this many most probable tokens; 0: from all.', on_resume='identity', at_least=0
  )
  top_p: float = fields.field(
    1.0, 'Draw only from the fewest tokens with this much probability; 1: from all.', on_resume='identity'
  )
  kl_in_score: float = fields.field(
    0.0,
    'Subtract this multiple of log pi(y|x) - log pi_ref(y|x), in nats, from the score of a response.',
    on_resume='identity',
    at_least=0,
  )
  ratio_reference: str = fields.field(
    'initial',
    'Reference of the objective: the reference model, or the policy that drew the responses, as in REBEL.',
    on_resume='identity',
    choices=('initial', 'round'),
  )
  pairing: str = fields.field(
    'all',
    'Responses of a row: all as drawn, the best, the best and the worst, the first two ordered by score, or one row '
    'for each pair.',
    on_resume='identity',
    choices=('all', 'best', 'best_worst', 'two', 'all_pairs'),
  )
  ties: str = fields.field(
    'drop',
    'Pairs of equal scores: leave them out, or keep them with the label 1/2.',
    on_resume='identity',
    choices=('drop', 'keep'),
  )
  unfinished: str = fields.field(
    'keep',
    'Responses that were cut off: treat them like others, or leave out rows that have one. Pairs and the best response '
    'are then chosen among the others.',
    on_resume='identity',
    choices=('keep', 'drop'),
  )
  keep_rounds: int = fields.field(
    0,
    'Newest rounds whose files stay in the work directory, with those that a checkpoint needs; 0: all.',
    on_resume='free',
    at_least=0,
  )
  refresh: int = fields.field(
    0,
    'Rounds after which the policy becomes the reference, such as 1 for iterative DPO; 0: never. With 2 or more, the '
    'work directory keeps a copy of the trained parameters for each.',
    on_resume='identity',
    at_least=0,
  )
