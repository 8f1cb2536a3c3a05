"""What the page says in words: the result, what speaks for it, and what to be careful about.

A verdict is no more than a count of checks; each check names its figure. What is undefined is said to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hpcrl.evaluate.evaluation import AGENT, HOLD, Evaluation
from hpcrl.evaluate.statistics import SIGNIFICANT
from hpcrl.evaluate.table import FEW_SESSIONS
from hpcrl.report.figures import percent, plural
from hpcrl.report.gather import Gathered
from hpcrl.storage.attempts import AttemptRecord

GRAVE = ("made-up", "suspicious", "halves", "has been opened", "bankrupt", "trained on these bars", "leak",
         "close just seen", "could not be logged")  # fmt: skip
"""Words of an evaluation's warnings that call its figures themselves into question."""


CHANCE = "probability, given length, skew and fat tails of its returns"


@dataclass(frozen=True)
class Check:
    name: str
    holds: bool | None
    """None: not known."""
    words: str


@dataclass(frozen=True)
class Warned:
    grave: bool
    words: str


def figure(meta: dict[str, Any], key: str) -> float:
    """A number of ``meta["statistics"]``, NaN where there is none."""
    value = (meta.get("statistics") or {}).get(key)
    return float(value) if isinstance(value, int | float) else float("nan")


def interval(meta: dict[str, Any], key: str) -> tuple[float, float] | None:
    """A 95 % interval of ``meta["statistics"]``; None where there is none, or an end is undefined."""
    found = ((meta.get("statistics") or {}).get("intervals") or {}).get(key)
    if not isinstance(found, list | tuple) or len(found) < 2:
        return None
    low, high = found[:2]
    if not all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high)):
        return None
    return float(low), float(high)


def why(meta: dict[str, Any], key: str) -> str:
    """The reason that the evaluation gives for a figure that is none."""
    told = (meta.get("statistics") or {}).get("reasons")
    return str(told.get(key) or "it was not computed") if isinstance(told, dict) else "it was not computed"


def summary(found: Gathered) -> list[str]:
    """A few sentences on the result; without an evaluation, on the training alone."""
    if found.evaluation is None:
        return [_trained(found)]
    evaluation, meta = found.evaluation, found.evaluation.meta
    agent, hold = evaluation.row(AGENT), evaluation.row(HOLD)
    if meta["assets"] == "all":
        who = f"one account over {plural(len(meta['symbols']), 'symbol')}"
    elif len(meta["accounts"]) == 1:
        who = f"one account in {meta['accounts'][0]}"
    else:
        who = f"{plural(len(meta['accounts']), 'account')}, one per symbol"
    return [
        f"After {plural(meta['epoch'], 'epoch')} of training ({meta['env_steps']:,} env steps) the policy "
        f"was played over {plural(meta['bars'], 'bar')} of the {meta['split']} split, "
        f"{plural(meta['sessions'], 'session')} from {meta['first']} to {meta['last']} UTC: {who}, no "
        "exploration, all costs paid.",
        _result(agent, hold),
        _luck(evaluation),
    ]


def _result(agent: dict[str, float], hold: dict[str, float]) -> str:
    if agent["trades"] == 0:
        held = percent(hold["total_return"], sign=True)
        return f"It never traded: its equity stayed where it began, while buy and hold made {held}."
    gained = agent["total_return"]
    moved = "lost" if gained < 0 else "gained"
    ahead = gained - hold["total_return"]
    side = "ahead of" if ahead >= 0 else "behind"
    return (
        f"It {moved} {percent(abs(gained))}; buy and hold made {percent(hold['total_return'], sign=True)}, "
        f"so it ended {100 * abs(ahead):.2f} points {side} that. Its deepest fall was "
        f"{percent(abs(agent['max_drawdown']))}. "
        f"It traded {plural(round(agent['trades']), 'time')}, held {percent(agent['exposure'], 0)} of its "
        f"equity in positions on average, and paid {percent(agent['costs'])} of its start in costs."
    )


def _luck(evaluation: Evaluation) -> str:
    meta, agent = evaluation.meta, evaluation.row(AGENT)
    beats = float(meta.get("agent_beats_random", math.nan))
    if agent["trades"] == 0:
        return "There is nothing to judge."
    said = (
        "Its positions at other times would have done exactly as well."
        if math.isnan(beats)
        else f"The same positions at random other times did worse in {percent(beats, 0)} of "
        f"{plural(meta['draws'], 'draw')}."
    )
    found = interval(meta, "total_return")
    if found is not None:
        said += (
            f" Redrawing these returns in blocks, 95 % of total returns lie from {percent(found[0])} to "
            f"{percent(found[1])}."
        )
    return said


def _trained(found: Gathered) -> str:
    if not found.metrics:
        return "Nothing was trained yet."
    last = found.metrics[-1]
    return (
        f"Training has reached epoch {last['epoch']} ({last.get('env_steps', 0):,} env steps). The policy "
        "could not be played, so this page shows the training alone."
    )


def checks(evaluation: Evaluation) -> list[Check]:
    """What would have to hold before one believes in skill."""
    meta, agent = evaluation.meta, evaluation.row(AGENT)
    psr, dsr, trials = (figure(meta, key) for key in ("psr", "dsr", "trials"))
    beats = float(meta.get("agent_beats_random", math.nan))
    needed = figure(meta, "min_track_record_bars")
    difference = interval(meta, "difference_to_buy_and_hold")
    found = [
        Check("The bars are a market's", not meta["synthetic"], f"data source: {meta['data']['source']}"),
        _above("Its Sharpe ratio is above 0", psr, CHANCE, why(meta, "psr")),
        Check(
            "It beats buy and hold",
            None if difference is None else difference[0] > 0,
            "the interval of the difference was not computed"
            if difference is None
            else f"95 % interval of the difference in total return: {percent(difference[0], sign=True)} to "
            f"{percent(difference[1], sign=True)}",
        ),
        _above(
            "Its timing beats its own positions at other times",
            beats,
            "share of random draws beaten",
            "all draws tie",
        ),
    ]
    if math.isfinite(trials) and trials > 1:
        what = f"probability after the best of {trials:,.0f} trials was picked (deflated Sharpe ratio)"
        found.append(_above("It survives the number of trials", dsr, what, why(meta, "dsr")))
    words = f"{plural(meta['sessions'], 'session')}, {plural(meta['bars'], 'bar')}"
    enough = meta["sessions"] >= FEW_SESSIONS
    if math.isfinite(needed):
        words += f"; a track record like this one needs {math.ceil(needed):,} bars"
        enough = enough and meta["bars"] >= needed
    elif agent["total_return"] <= 0:
        words += "; without a gain no length would do"
        enough = False
    return [*found, Check("The sample is long enough", enough, words)]


def _above(name: str, value: float, what: str, reason: str) -> Check:
    if not math.isfinite(value):
        return Check(name, None, f"{what}: undefined, {reason}")
    return Check(
        name,
        value > SIGNIFICANT,
        f"{percent(value, 1)}; {what}; more than {percent(SIGNIFICANT, 0)} is asked for",
    )


def verdict(evaluation: Evaluation, found: list[Check]) -> tuple[str, str]:
    """("none", "some" or "all", a short title)."""
    if evaluation.row(AGENT)["trades"] == 0:
        return "none", "Nothing to judge: it never traded"
    if evaluation.meta["synthetic"]:
        return "none", "Made-up bars: no claim follows"
    if evaluation.row(AGENT)["total_return"] <= 0:
        return "none", "No gain on these bars, after costs"
    held = sum(check.holds is True for check in found)
    if held == len(found):
        return "all", f"All {held} checks hold on these bars"
    core = [check.holds for check in found[1:4]]
    if not any(core):
        return "none", "No evidence of skill on these bars"
    return "some", f"{held} of {len(found)} checks hold: not enough to believe in skill"


def seal_words(found: Gathered) -> str:
    """What this page did to the sealed test split."""
    count = found.openings
    if found.split == "test" and found.evaluation is not None:
        which = f"opening {count} of this data set" if count else "an opening that could not be counted"
        return f"This page opened the sealed test split ({which}); the opening was logged beside the run."
    so_far = "" if count is None else f" So far it was opened {plural(count, 'time')} for this data set."
    return (
        f"The sealed test split was not opened for this page.{so_far} "
        "Open it once, at the very end: hpcrl report RUN --split test."
    )


def warnings(found: Gathered, alarms: list[str]) -> list[Warned]:
    """The grave ones first."""
    said: list[Warned] = []
    if found.unplayed:
        said.append(Warned(True, f"No evaluation: {found.unplayed}"))
    if found.evaluation is not None:
        meta = found.evaluation.meta
        said += [Warned(any(word in line.lower() for word in GRAVE), line) for line in meta["warnings"]]
        said += [Warned(False, line) for line in _short(meta)]
        if found.target.population is not None and found.split == "validation":
            said.append(Warned(False, _chosen(found)))
    elif found.metrics and str(found.metrics[-1].get("data_source", "")).startswith(("synthetic", "planted")):
        said.append(Warned(True, "made-up bars: no performance claim follows from this"))
    said += [Warned(False, line) for line in (*_unfinished(found), *alarms, *found.said)]
    unique = {one.words: one for one in said}
    return sorted(unique.values(), key=lambda one: not one.grave)


def _short(meta: dict[str, Any]) -> list[str]:
    if meta["sessions"] >= FEW_SESSIONS:
        return []
    error = meta["sharpe_standard_error"]
    return [
        f"a short sample: of {plural(meta['sessions'], 'session')} an annual Sharpe ratio has a standard "
        f"error of \N{PLUS-MINUS SIGN}{error:.1f}; annual return, Sortino and Calmar are left out"
    ]


def _chosen(found: Gathered) -> str:
    records = sum(len(one.turns) for one in found.past)
    return (
        f"the population's members were compared on this very split ({plural(records, 'trial')} so far): its "
        "results flatter whoever came out on top; only the test split is untouched"
    )


def _unfinished(found: Gathered) -> list[str]:
    said = []
    done = found.metrics[-1]["epoch"] if found.metrics else 0
    wanted = _wanted(found)
    if found.metrics and wanted and done < wanted:
        ended = _ended(found.attempts[-1]) if found.attempts else "how it ended is not known"
        said.append(f"training is not finished: {done} of {wanted} epochs; {ended}")
    if found.evaluation is not None and found.metrics:
        played = int(found.evaluation.meta["epoch"])
        if played > done:
            said.append(f"metrics.jsonl ends at epoch {done}, the checkpoint is of epoch {played}")
        elif played < done:
            said.append(f"the checkpoint that was played is of epoch {played}; training has reached {done}")
    missing = done - len(found.metrics)
    if found.metrics and missing > 0:
        said.append(f"metrics.jsonl lacks {plural(missing, 'epoch')} of {done}: lines were lost or torn")
    return said


def _wanted(found: Gathered) -> int:
    """Epochs that the run is to have: a resumed one may have been given another number."""
    for attempt in reversed(found.attempts):
        if "train.epochs" in attempt.live:
            return int(attempt.live["train.epochs"])
    return found.config.train.epochs if found.config is not None else 0


def _ended(attempt: AttemptRecord) -> str:
    if attempt.end is None:
        return f"attempt {attempt.number} has not said how it ended: it still runs, or was killed"
    return f"attempt {attempt.number} ended: {attempt.end.get('reason', 'no reason given')}"


def alarms_of(found: Gathered) -> list[str]:
    """Alarms of the training, each once, with how many epochs raised it; none without a config."""
    config = found.config
    if config is None or not found.metrics:
        return []
    from hpcrl.monitor.alarms import Alarms, name_of
    from hpcrl.policy.distributions import build_distribution

    assets = len(found.record["data"].get("symbols", [])) or 1 if config.env.assets == "all" else 1
    kind = build_distribution(config.policy)
    alarms = Alarms(assets * kind.collapsed_entropy, assets * kind.greatest_entropy)
    seen: dict[str, tuple[int, str]] = {}
    for line in found.metrics:
        for text in alarms.check(line):
            count, _ = seen.get(name_of(text), (0, ""))
            seen[name_of(text)] = (count + 1, text)
    return [f"in training, {plural(count, 'epoch')}, the last time: {text}" for count, text in seen.values()]
