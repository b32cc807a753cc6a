"""A complete tiny Hugging Face folder, made on the fly, for tests that need a model, a tokenizer and a template."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = '<|endoftext|>'
MESSAGE_START = '<|im_start|>'
MESSAGE_END = '<|im_end|>'
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END)  # ids 0, 1, 2
CHAT_TEMPLATE = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = (
  'system user assistant You are a helpful assistant, and you answer the question of the user with care.',
  'The film was wonderful: the story is warm, the actors are great, and I would happily watch it again with friends.',
  'The film was terrible: the story is dull, the actors are awful, and I would never waste another evening on it.',
  'Tell me about the best thing that happened to you today, please. What do you think of the weather this morning?',
  'I love the bright colours of this painting, but the frame around it is ugly and somewhat damaged.',
  'She said that they should go there before the others come, because there is not enough room for everyone.',
  'In the beginning there was nothing on the table; then he put down a book, a pen and three old letters.',
  'A good review explains what works and what does not, and it gives reasons that other people can check.',
)


def build_tokenizer(vocab_size: int = 384) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer, so that it encodes any text: 3 special tokens, 256 bytes, then learnt merges.

  Args:
    vocab_size: tokens in all, from 259 (no merges) to 558.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIAL_TOKENS),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  if tokenizer.get_vocab_size() != vocab_size:
    raise ValueError(f'vocab_size={vocab_size}: the corpus yields {tokenizer.get_vocab_size()} tokens')
  return tokenizer


def write_tiny_tokenizer(folder: str | pathlib.Path, vocab_size: int = 384) -> None:
  """Writes tokenizer.json, tokenizer_config.json (with a ChatML template) and generation_config.json."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  build_tokenizer(vocab_size).save(str(folder / 'tokenizer.json'))
  tokenizer_config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': MESSAGE_START,
    'eos_token': MESSAGE_END,
    'pad_token': MESSAGE_END,
    'unk_token': END_OF_TEXT,
    'add_bos_token': False,
    'clean_up_tokenization_spaces': False,
    'chat_template': CHAT_TEMPLATE,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(tokenizer_config, indent=2))
  generation_config = {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}
  (folder / 'generation_config.json').write_text(json.dumps(generation_config, indent=2))


def tiny_llama_config(
  *,
  vocab_size: int = 384,
  width: int = 32,
  layers: int = 2,
  heads: int = 4,
  kv_heads: int = 2,
  mlp_width: int = 64,
  tied: bool = True,
  max_positions: int = 512,
) -> dict[str, object]:
  """The contents of config.json for a tiny Llama."""
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': vocab_size,
    'hidden_size': width,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'intermediate_size': mlp_width,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0,
    'rope_scaling': None,
    'max_position_embeddings': max_positions,
    'attention_bias': False,
    'mlp_bias': False,
    'tie_word_embeddings': tied,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'torch_dtype': 'float32',
  }


def tiny_llama_weights(config: dict[str, object], seed: int = 0) -> dict[str, np.ndarray]:
  """Random float32 weights under Hugging Face names: kernels of variance 1 / fan-in, norm scales around 1."""
  generator = np.random.default_rng(seed)
  width, mlp_width = config['hidden_size'], config['intermediate_size']
  key_width = width * config['num_key_value_heads'] // config['num_attention_heads']

  def kernel(rows: int, columns: int) -> np.ndarray:
    return (generator.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

  def scale() -> np.ndarray:
    return (1.0 + 0.2 * generator.standard_normal(width)).astype(np.float32)

  weights = {'model.embed_tokens.weight': kernel(config['vocab_size'], width)}
  for layer in range(config['num_hidden_layers']):
    prefix = f'model.layers.{layer}.'
    weights |= {
      prefix + 'input_layernorm.weight': scale(),
      prefix + 'self_attn.q_proj.weight': kernel(width, width),
      prefix + 'self_attn.k_proj.weight': kernel(key_width, width),
      prefix + 'self_attn.v_proj.weight': kernel(key_width, width),
      prefix + 'self_attn.o_proj.weight': kernel(width, width),
      prefix + 'post_attention_layernorm.weight': scale(),
      prefix + 'mlp.gate_proj.weight': kernel(mlp_width, width),
      prefix + 'mlp.up_proj.weight': kernel(mlp_width, width),
      prefix + 'mlp.down_proj.weight': kernel(width, mlp_width),
    }
  weights['model.norm.weight'] = scale()
  if not config['tie_word_embeddings']:
    weights['lm_head.weight'] = kernel(config['vocab_size'], width)
  return weights


def write_tiny_model(folder: str | pathlib.Path, seed: int = 0, **config_overrides) -> pathlib.Path:
  """Writes config.json, model.safetensors and the tokenizer files of a tiny random Llama.

  Args:
    folder: created if absent.
    seed: of the random weights.
    **config_overrides: arguments of `tiny_llama_config`, such as `tied=False`.

  Returns:
    The folder, as a path.
  """
  folder = pathlib.Path(folder)
  config = tiny_llama_config(**config_overrides)
  write_tiny_tokenizer(folder, config['vocab_size'])
  (folder / 'config.json').write_text(json.dumps(config, indent=2))
  safetensors_numpy.save_file(tiny_llama_weights(config, seed), folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder
