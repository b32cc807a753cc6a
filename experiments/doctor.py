"""The same program as `alignjax doctor`: python -m experiments.doctor."""

from alignjax.commands import doctor

if __name__ == '__main__':
  doctor.start()
