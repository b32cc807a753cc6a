"""Hints for unknown settings: what TRL, LLaMA-Factory and axolotl call a setting, or the nearest known name."""

from collections.abc import Collection
import difflib
import re

_LEARNING_RATE = "the learning rate is part of the optimizer: --optimizer='adamw(1e-6)'"
_BETA = "arguments of the loss belong to the objective: --objective='dpo(beta=0.1)'"
_LOSS = "the loss is an expression: --objective='ipo()'"
_ADAM = "arguments of the optimizer are part of it: --optimizer='adamw(1e-6, beta1=0.9, beta2=0.95)'"
_DECAY = "weight decay is part of the optimizer: --optimizer='adamw(1e-6, weight_decay=0.01)'"
_EPOCHS = 'use --epochs=1'
_STEPS = 'use --steps=1000, a number of updates'
_WARMUP = 'use --warmup=100, a number of updates, or --warmup=0.1, a share of the run'
_SCHEDULE = 'use --schedule=cosine'
_CLIP = 'use --gradient_clip=1.0'
_BATCH = 'use --batch_size=32, the prompts per update, summed over all devices'
_ACCUMULATE = 'use --microbatches=4, the parts of a batch; --batch_size is the whole batch'
_MODEL = 'use --model=Qwen/Qwen2.5-0.5B, a folder or a name on the Hub'
_REFERENCE = 'use --reference=models/base, a folder or a name on the Hub'
_REVISION = 'the revision is part of the name: --model=Qwen/Qwen2.5-0.5B@main'
_DATA = 'use --data=pairs.jsonl'
_PART = "a part of a dataset is part of its location: --data='pairs.jsonl[:1000]'"
_SPLIT = "the split is part of the location: --data='pairs.jsonl[split:5%]'"
_EVAL = 'use --eval_data=held_out.jsonl'
_EVERY = 'use --eval_every=100, a number of updates'
_SAVE = 'use --save_every=500, a number of updates, or --save_minutes=30'
_KEEP = 'use --keep=2, the number of newest checkpoints'
_LOG = 'use --log_every=10, a number of updates'
_WORKDIR = 'use --workdir=runs/first'
_OUTPUT = 'use --output=answers.jsonl'
_OUT = 'use --out=merged'
_LENGTH = 'use --max_prompt=512 and --max_response=512, in tokens'
_PROMPT = 'use --max_prompt=512, in tokens'
_RESPONSE = 'use --max_response=512, in tokens'
_NEW = 'use --max_new_tokens=128'
_DTYPE = 'use --compute_dtype=bfloat16'
_DTYPE_OF_FILES = 'use --dtype=bfloat16, the type of the stored weights'
_REMAT = 'use --remat=full, or --remat=dots, which keeps matrix products'
_LORA = "use --adapter='lora(rank=16, alpha=32)'"
_QLORA = "use --adapter='lora(rank=16, alpha=32)' with --base_quantization=nf4 or int8"
_PADDING = 'batches have fixed shapes: --buckets=(512,256),(512,512), or leave it out to have them chosen'
_RESUME = 'the same command resumes its run, and so does --workdir=runs/first alone'
_REPORT = 'use --trackers=wandb or --trackers=trackio; TensorBoard events are always in --workdir'
_PROJECT = 'use --tracker_project=alignment'
_RUN_NAME = 'use --run_name=first'
_PUSH = 'use --push_to_hub=me/model'
_DEVICES = 'parameters are sharded over all devices: see --mesh.fsdp, --mesh.data and --mesh.tensor'
_SEED = 'use --seed=0'
_ATTENTION = 'use --attention=cudnn on an NVIDIA GPU'
_TEMPLATE = 'the chat template of the model is used: it is chat_template.jinja in the folder of --model'
_TEMPLATE_ARGUMENTS = 'use --template_arguments=enable_thinking=false'
_WORKERS = 'tokens are cached, and made ahead by: alignjax data tokenize --workers=8'
_CACHE = 'use --reference_cache=caches/reference, a folder'
_SAMPLES = 'use --samples=3, the responses to each prompt'
_GREEDY = 'use --greedy, or leave it out to draw responses'
_REWARD = 'the reward is an expression: --reward=\'reward_model("runs/reward/model")\''
_METHOD = "the method is an expression: --method='ties(density=0.5)'"
_MODELS = 'use --models=first,second'

# What other trainers call a setting. Of several hints, the first whose flags the program has counts.
_OTHERS: dict[str, tuple[str, ...]] = {
  'adam_beta1 adam_beta2 adam_epsilon adamw_beta1 adam_eps optim_args': (_ADAM,),
  'adapter_name lora lora_enable use_lora use_peft lora_r lora_rank lora_alpha lora_target lora_target_modules '
  'lora_dropout peft finetuning_type': (_LORA,),
  'adapter_name_or_path lora_model_dir peft_model': ('use --adapter_from=adapter', 'use --adapter=adapter'),
  'attn_implementation flash_attn flash_attention use_flash_attention_2': (_ATTENTION,),
  'auto_resume resume resume_from_checkpoint auto_resume_from_checkpoints ignore_data_skip overwrite_output_dir': (
    _RESUME,
  ),
  'beta pref_beta dpo_beta rl_beta kl_coef beta_dpo simpo_gamma gamma label_smoothing': (_BETA,),
  'bf16 fp16 tf32 mixed_precision precision torch_dtype dtype model_dtype pure_bf16': (_DTYPE,),
  'batch_size_per_device micro_batch_size per_device_train_batch_size per_gpu_train_batch_size train_batch_size '
  'global_batch_size batch per_device_batch_size mini_batch_size bs': (_BATCH,),
  'per_device_eval_batch_size eval_batch_size': ('evaluation uses the batches of training: --batch_size=32',),
  'gradient_accumulation_steps grad_accum gradient_accumulation accumulate_grad_batches': (_ACCUMULATE,),
  'chat_template template': (_TEMPLATE,),
  'chat_template_kwargs template_kwargs enable_thinking': (_TEMPLATE_ARGUMENTS,),
  'dataset datasets dataset_name dataset_path dataset_dir train_file train_data train_dataset training_data data_path '
  'data_files file input': (_DATA, 'use --prompts=questions.jsonl'),
  'dataset_num_proc preprocessing_num_workers num_workers dataloader_num_workers dataset_processes': (_WORKERS,),
  'dataset_split dataset_train_split split train_split dataset_config': (_SPLIT,),
  'ddp deepspeed fsdp fsdp_config num_gpus gpus devices n_gpu tensor_parallel_size tp dp accelerate strategy '
  'num_devices world_size mesh': (_DEVICES,),
  'do_eval eval_dataset eval_file dataset_test_split validation_file test_datasets val_size val_set_size': (_EVAL,),
  'do_train do_predict': ('leave it out: alignjax train trains, alignjax sample draws responses',),
  'eval_steps evaluation_strategy eval_strategy evals_per_epoch eval_interval test_freq': (_EVERY,),
  'gradient_checkpointing activation_checkpointing use_gradient_checkpointing': (_REMAT,),
  'group_by_length pad_to_multiple_of padding pad_to_sequence_len': (_PADDING,),
  'sample_packing pack pack_dataset eval_packing': ('use --packing=auto',),
  'hub_model_id hub_strategy push_to_hub_model_id upload_to_hub hub_repo': (_PUSH,),
  'lr learning_rate base_lr peak_lr max_lr': (_LEARNING_RATE,),
  'load_in_4bit load_in_8bit quantization_bit bnb_4bit_quant_type quantization': (_QLORA,),
  'logging_steps log_steps logging_interval log_interval log_freq': (_LOG,),
  'logging_dir tensorboard wandb report_to use_wandb trackio mlflow tracker swanlab log_with': (_REPORT,),
  'wandb_project project project_name': (_PROJECT,),
  'wandb_name wandb_run_name experiment_name exp_name': (_RUN_NAME,),
  'loss loss_type pref_loss rl trainer algorithm stage simpo dpo loss_fn': (_LOSS,),
  'lr_scheduler lr_scheduler_type scheduler lr_schedule scheduler_type': (_SCHEDULE,),
  'max_completion_length max_target_length max_response_length response_length cutoff_response': (_RESPONSE, _NEW),
  'max_grad_norm grad_clip clip_grad gradient_clipping grad_norm clip gradient_clip_val max_norm': (_CLIP,),
  'max_length max_seq_length max_seq_len sequence_len cutoff_len model_max_length seq_len context_length': (
    _LENGTH,
    _NEW,
  ),
  'max_prompt_length prompt_length max_source_length': (_PROMPT,),
  'max_samples max_train_samples num_examples limit max_rows n_examples': (_PART,),
  'max_steps train_steps num_steps total_steps max_iters iterations num_train_steps': (_STEPS,),
  'merge_method': (_METHOD,),
  'model_name_or_path model_name base_model_name_or_path model_path model_id pretrained_model checkpoint '
  'model_name_or_dir': (_MODEL, _MODELS),
  'model_revision revision': (_REVISION,),
  'num_epochs num_train_epochs n_epochs epoch train_epochs max_epochs total_epochs': (_EPOCHS,),
  'num_return_sequences n num_samples best_of num_generations': (_SAMPLES,),
  'do_sample': (_GREEDY,),
  'optim optimizer_name optimizer_type': ("the optimizer is an expression: --optimizer='adamw(1e-6)'",),
  'output_dir out_dir output_path save_dir logdir log_dir checkpoint_dir experiment_dir': (_WORKDIR, _OUT, _OUTPUT),
  'reward_model reward_funcs reward_model_path reward_model_name_or_path reward_function': (_REWARD,),
  'precompute_ref_log_probs ref_cache': (_CACHE,),
  'ref_model ref_model_name_or_path reference_model ref reference_model_name ref_model_path': (_REFERENCE,),
  'save_steps save_strategy save_interval saves_per_epoch save_freq checkpoint_every': (_SAVE,),
  'save_total_limit keep_checkpoints max_to_keep save_limit': (_KEEP,),
  'random_seed data_seed set_seed': (_SEED,),
  'truncation_mode max_prompt_truncation truncation': ('prompts lose their first tokens; for responses see '
  '--long_responses=cut',),
  'trust_remote_code': ('leave it out: alignjax runs no code from model folders',),
  'warmup_ratio warmup_steps lr_warmup_steps num_warmup_steps warmup_fraction': (_WARMUP,),
  'weight_decay wd l2': (_DECAY,),
  'yaml config_file cfg config_path': ('use --config=run.yaml',),
}  # fmt: skip
HINTS = {name: hints for names, hints in _OTHERS.items() for name in names.split()}
_FLAG = re.compile(r'--([a-z][\w.]*)')


def hint(name: str, known: Collection[str], prefix: str = '') -> str:
  """What to use instead of an unknown setting, to follow its name in a message; '' if there is nothing near.

  Args:
    name: the unknown setting, without dashes in front.
    known: the settings of the program.
    prefix: prefix of known names in the message, such as '--'.
  """
  plain = name.replace('-', '_').lower().removeprefix('config.')
  if plain in known:
    return f'; did you mean {prefix}{plain}?'
  for text in HINTS.get(plain, ()):
    if all(flag in known for flag in _FLAG.findall(text.partition('alignjax ')[0])):
      return f': {text}'
  close = difflib.get_close_matches(plain, known, n=1)
  return f'; did you mean {prefix}{close[0]}?' if close else '; --help lists the settings'
