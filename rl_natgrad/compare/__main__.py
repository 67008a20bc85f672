import sys

from rl_natgrad.compare import main

sys.exit(main())
