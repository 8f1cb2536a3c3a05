"""Shape legend, and the records that pass between rooms.

Suffixes of tensor names, in this order:

    N  environments of this rank        A  assets of one account
    T  steps of a rollout               S  symbols of a data set
    B  bars of the common time grid     F  features of one bar and symbol
    C  chunks of a minibatch            Q  steps of a chunk (sequence_length)
    W  attention window                 M  tokens of kept history (padded to a multiple of W)
    D  model width                      H  heads, K head width, L layers
    E  entries of one token (features, account, previous action and reward, time)

so ``token_NTE`` is one token per environment and step. Accounts are float64, heads, log-probabilities,
returns and advantages float32; bf16 stays inside the policy's trunk. An action is chosen at the close of
bar t, fills at the open of bar t+1, and is rewarded for the step t -> t+1.
"""

from __future__ import annotations


class HpcrlError(Exception):
    """The user's mistake: one clear line that names the thing, the value and what would be right.

    The command line prints the message without a traceback and ends with ``exit_code``
    (2: usage, config or input; 1: failed while running).
    """

    exit_code = 2


class RunFailed(HpcrlError):
    """Something outside the user's input failed (a full disk, a broken checkpoint)."""

    exit_code = 1
