#!/usr/bin/env python
"""The same as ``hpcrl stage``, and without a verb as ``hpcrl stage supabase``:

python tools/stage_data.py --symbols AAPL,MSFT --start 2024-01-01 --out data/market.h5
python tools/stage_data.py postgres --symbols AAPL,MSFT --start 2024-01-01 --out data/market.h5
python tools/stage_data.py files --path data/sample --out data/market.h5
"""

import sys

from hpcrl.cli import main

first = sys.argv[1] if len(sys.argv) > 1 else "--help"
sys.argv[1:1] = ["stage", "supabase"] if first.startswith("-") and first != "--help" else ["stage"]
main()
