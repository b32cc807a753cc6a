"""The reader of compiled programs, on excerpts of what libtpu 0.0.50 has printed."""

import pathlib

from tests.pods.transfers import Transfer, transfers

PROGRAM = pathlib.Path(__file__).with_name('excerpt.hlo').read_text()


def test_transfers_are_read_with_their_partners_and_loops():
  assert transfers(PROGRAM) == [
    Transfer('reduce-scatter', 32 * 32768, '{{0,1},{2,3}}', False, True),
    Transfer('all-gather', 512, '[4,4]<=[16]', False, True),
    Transfer('collective-permute', 4, '{{0,1},{1,0}}', False, False),
    Transfer('ALL_REDUCE SUM', 48 * 8 * 128, '{1,2}x{0:15}', True, False),
  ]
