"""``python -m t2v_turbo.nodes.graph`` runs a saved graph."""

import sys

from .cli import main

sys.exit(main())
