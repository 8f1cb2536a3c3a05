"""Importing this room makes ``gymnasium.make("hpcrl/Trading-v0", path=...)`` known; it loads no torch.

Gymnasium 1 looks for no plugins by itself: say ``import hpcrl.env``, or make
``"hpcrl.env:hpcrl/Trading-v0"``, which imports it.
"""

from gymnasium.envs.registration import register, registry

ENV_ID = "hpcrl/Trading-v0"

if ENV_ID not in registry:
    register(
        ENV_ID,
        entry_point="hpcrl.env.gymnasium:HpcrlTradingEnv",
        vector_entry_point="hpcrl.env.gymnasium:HpcrlVectorEnv",
    )
