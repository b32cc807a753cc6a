"""The same program as `alignjax doctor`: python -m experiments.doctor."""

from alignjax.commands import doctor, program

if __name__ == '__main__':
  program.start(doctor.PROGRAM)
