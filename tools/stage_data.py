#!/usr/bin/env python
"""python tools/stage_data.py files --path data/sample --out data/market.h5: the same as ``hpcrl stage``."""

import sys

from hpcrl.cli import main

sys.argv.insert(1, "stage")
main()
