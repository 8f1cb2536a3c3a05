"""Shape legend, and the records that pass between rooms.

Suffixes of tensor names, in this order:

    N  environments of this rank        A  assets of one account
    T  steps of a rollout               S  symbols of a data set
    B  bars of the common time grid     F  features of one bar and symbol
    C  chunks of a minibatch            Q  steps of a chunk (sequence_length)
    W  attention window                 M  tokens of kept history (padded to a multiple of W)
    D  model width                      H  heads, K head width, L layers
    P  numbers per asset that the actor gives (logits of a grid's positions, or a Gaussian's two)
    E  entries of one token (features, account, previous action and reward, time)

so ``token_NTE`` is one token per environment and step. Accounts are float64, heads, log-probabilities,
returns and advantages float32; bf16 stays inside the policy's trunk. An action is chosen at the close of
bar t, fills at the open of bar t+1, and is rewarded for the step t -> t+1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a login node reads configurations and errors without torch
    from torch import Tensor


class HpcrlError(Exception):
    """The user's mistake: one clear line that names the thing, the value and what would be right.

    The command line prints the message without a traceback and ends with ``exit_code``
    (2: usage, config or input; 1: failed while running).
    """

    exit_code = 2


class RunFailed(HpcrlError):
    """Something outside the user's input failed (a full disk, a broken checkpoint)."""

    exit_code = 1


STOPPED_EARLY = 75
"""Exit code of a run that was asked to stop, saved, and can be resumed (EX_TEMPFAIL)."""
HUNG = 70
"""Exit code of a rank that its watchdog ended (EX_SOFTWARE)."""


@dataclass
class Rollout:
    """What one rank's environments did in one epoch; preallocated once and overwritten.

    Chunk-major, C chunks of Q steps per environment, so that a learner's chunk is a row of a view:
    chunk c, environment n is row c x N + n of ``tensor.flatten(0, 1)``.
    """

    token_CNQE: Tensor
    """float32, what the policy saw."""
    age_CNQ: Tensor
    """int64, tokens of the same episode before this one (history included)."""
    action_CNQA: Tensor
    """Of the policy's distribution: int64 index into policy.positions (discrete), or the number before the
    squashing, float32 (continuous)."""
    reward_CNQ: Tensor
    """float32, shaped, unscaled."""
    terminated_CNQ: Tensor
    """bool: the step ended its episode for good (bankruptcy); no bootstrap."""
    truncated_CNQ: Tensor
    """bool: the step was its episode's last by length; bootstrap from the true last observation."""
    memory: tuple[Tensor, ...]
    """The policy's memory as it stood at each chunk's start, each [L, C, N, ...]."""
    bootstrap_N: Tensor
    """float32, value of the observation after the last step, in units of scaled return."""

    def steps(self, tensor_CNQ: Tensor) -> Tensor:
        """[C, N, Q, ...] -> [N, T, ...]."""
        return tensor_CNQ.transpose(0, 1).flatten(1, 2)

    def chunks(self, tensor_NT: Tensor) -> Tensor:
        """[N, T] -> [C x N, Q], the inverse of ``steps`` followed by flattening."""
        n_chunks, n_envs, length = self.age_CNQ.shape
        return tensor_NT.view(n_envs, n_chunks, length).transpose(0, 1).reshape(-1, length)
