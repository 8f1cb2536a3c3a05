#!/usr/bin/env python
"""python tools/evaluate.py RUN --split test: the same as ``hpcrl evaluate``."""

import sys

from hpcrl.cli import main

sys.argv.insert(1, "evaluate")
main()
