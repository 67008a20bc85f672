import sys

from rl_natgrad.compare import process

sys.exit(process())
