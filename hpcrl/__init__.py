"""hpcrl: reinforcement-learning trading agents on a Slurm cluster."""

import sys
from importlib.util import find_spec

__version__ = "0.1.0"

ENV_ID = "hpcrl/Trading-v0"


def register_envs() -> None:
    """Make ``gymnasium.make("hpcrl/Trading-v0", path=...)`` known; ``import hpcrl`` sees to it."""
    from gymnasium.envs.registration import register, registry

    if ENV_ID not in registry:
        register(
            ENV_ID,
            entry_point="hpcrl.env.gymnasium:HpcrlTradingEnv",
            vector_entry_point="hpcrl.env.gymnasium:HpcrlVectorEnv",
        )


class _WhenImported:
    """Registers as soon as somebody imports Gymnasium, which looks for no plugins by itself.

    Importing it here would cost every command a fifth of a second, and a login node needs none of it.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("gymnasium")
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module) -> None:
            load(module)
            register_envs()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    register_envs()
else:
    sys.meta_path.insert(0, _WhenImported())
