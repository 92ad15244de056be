"""``python -m t2v_turbo.train <command>`` is ``t2v-turbo <command>``, for ``accelerate launch -m``."""

import sys

from .cli import main

sys.exit(main())
