"""Writes the generated pages of the documentation.

python -m docs.pages            writes all of them
python -m docs.pages --check    fails if one is out of date
"""

from absl import app

from docs.pages import writing

if __name__ == '__main__':
  app.run(writing.main)
