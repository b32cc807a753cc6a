"""What docs/objectives.md says beside the docstrings: how to read it, names that collide, sums that are methods."""

from typing import NamedTuple

HEAD = """\
# Objectives

*Written from the docstrings by `python -m docs.pages.objectives_page`: change those, not this page.*

Every name below is a function that builds an `Objective`, in a notebook (`objectives.dpo(beta=0.1)`) as in an
expression on the command line (`--objective='dpo(beta=0.1) + 0.1 * sft()'`). Its equation is the loss of one prompt; a
soft label takes the expectation over which response is preferred, unless the family says otherwise.

[Overview](#overview) · [Names that collide](#names-that-collide) · [Compositions](#compositions) ·
[Notation](#notation) · [Risk measures](#risk-measures)

## Overview

- **reference**: a reference model, or its cached log-probabilities, is needed.
- **couples rows**: the loss of a prompt depends on the other prompts of the batch, which costs a second forward pass;
  *and remembers*: on earlier batches, too.
- **score**: the batch must carry a reward for each response.
- **reads more**: statistics beside the log-probabilities of the tokens that came.

All with default arguments."""

OVERVIEW_HEADER = """\
| objective | paper | reference | couples rows | score | reads more |
|---|---|---|---|---|---|"""

NAMES = """\
## Names that collide

Three methods are called alpha-something, and have nothing but the letter in common:

- **alpha-DPO** ([`alpha_dpo`](#alpha_dpo), 2410.10148): SimPO with an *adaptive margin*. alpha says how far the drift
  from the reference moves the target margin of a pair.
- **AlphaPO** ([`alpha_po`](#alpha_po), 2501.03884): SimPO with another *shape of the reward*. alpha bends the reward as
  a function of the likelihood; there is no reference.
- **f-DPO with the alpha divergence** ([`alpha_divergence_dpo`](#alpha_divergence_dpo), 2309.16240): DPO under another
  *divergence* to the reference. alpha leads from the reverse to the forward KL."""

NOTATION = """\
## Notation

Families refer to it as that of `preference`, the file in which it stands. sg is stop-gradient."""


class Composition(NamedTuple):
  method: str
  expression: str
  paper: str  # in Markdown
  remark: str


COMPOSITIONS = (
  Composition(
    'Iterative RPO, the DPO + SFT of many recipes',
    'dpo(beta=0.1) + 1.0 * sft()',
    '[Pang et al. 2024](https://arxiv.org/abs/2404.19733)',
    'One round of it. The likelihood is averaged over tokens.',
  ),
  Composition(
    'RPO, regularised preference optimisation',
    'dpo(beta=0.5) + 0.2 * sft()',
    '[Liu et al. 2024](https://arxiv.org/abs/2405.16436)',
    'The released variant with the likelihood averaged over tokens.',
  ),
  Composition(
    'RPO with the weight 0.005',
    'dpo(beta=0.05) + 0.005 * sft()',
    '[Liu et al. 2024](https://arxiv.org/abs/2405.16436)',
    'The released variant with this weight sums over tokens; `sft()` averages, so this one is far weaker.',
  ),
  Composition(
    'CPO-SimPO',
    'simpo(beta=2.0, gamma=1.0) + 1.0 * sft()',
    '[released code](https://github.com/fe1ixxu/CPO_SIMPO)',
    'SimPO and the imitation term of CPO, averaged over tokens.',
  ),
  Composition(
    'MPO, mixed preference optimisation',
    '0.8 * dpo(beta=0.1) + 0.2 * bco_pair(beta=0.1) + 1.0 * sft()',
    '[Wang et al. 2024](https://arxiv.org/abs/2411.10442)',
    'The paper’s quality loss has a reward shift: that is `bco`, which couples rows.',
  ),
  Composition(
    'PMLE with KL penalty',
    'pmle(gamma=0.01) + kl_penalty(beta=1e-05)',
    '[Yun et al. 2025](https://arxiv.org/abs/2506.01523)',
    'The penalty wants samples of the current policy: see [`kl_penalty`](#kl_penalty).',
  ),
  Composition(
    'IS-DPO, importance-sampled DPO',
    'importance_weighted(dpo(beta=0.1), clip=0.25)',
    '[Nguyen et al. 2025](https://arxiv.org/abs/2506.08681)',
    'Any objective stands inside, such as `ipo()`.',
  ),
  Composition(
    'WPO, weighted preference optimisation',
    'wpo_weighted(dpo(beta=0.1))',
    '[Zhou et al. 2024](https://arxiv.org/abs/2406.11827)',
    'Any objective stands inside.',
  ),
)


def compositions() -> str:
  """The section of methods that need no function of their own."""
  rows = (f'| {method} | `{expression}` | {paper} | {remark} |' for method, expression, paper, remark in COMPOSITIONS)
  return '\n'.join(
    (
      '## Compositions',
      '',
      'Published methods that are sums, or one objective inside another, and so are expressions:',
      '',
      '| method | expression | paper | remark |',
      '|---|---|---|---|',
      *rows,
    )
  )


RISK = """\
Arguments of [`ra_dpo`](#ra_dpo), as in `ra_dpo(risk=cvar(0.97))`, and functions in their own right: `alignjax.risk` has
them, and what they are worth nested along the tokens of a response."""
