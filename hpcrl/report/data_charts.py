"""A chart of the data: the share of bars missing in each session. Prices of the test split stay unseen."""

from __future__ import annotations

import numpy as np

from hpcrl.market.dataset import Market
from hpcrl.report.chart import AGENT_COLOUR, Chart, axis, floats, layout, make
from hpcrl.report.tables import day

MOST_SESSIONS = 400
DAY = 86_400


def missing_chart(market: Market) -> Chart | None:
    """None where no bar is missing between a symbol's first and its last."""
    import plotly.graph_objects as go

    session_K, share_K = missing_by_session(market)
    if not share_K.any():
        return None
    if len(session_K) > MOST_SESSIONS:  # the worst of each stretch: a gap must show
        parts = np.array_split(np.arange(len(session_K)), MOST_SESSIONS)
        worst = [part[np.argmax(share_K[part])] for part in parts]
        session_K, share_K = session_K[worst], share_K[worst]
    dates = [day(int(session) * DAY) for session in session_K]
    bar = go.Bar(x=dates, y=floats(share_K), marker={"color": AGENT_COLOUR}, hovertemplate="%{y:.1%}")
    shape = layout(230, xaxis=axis(type="date", nticks=5, tickangle=0),
                   yaxis=axis("share of bars", tickformat=".1~%", rangemode="tozero", nticks=5))  # fmt: skip
    worst_day = dates[int(np.argmax(share_K))]
    words = (
        f"Bars missing in {np.count_nonzero(share_K)} of {len(session_K)} sessions, of all symbols together; "
        f"most on {worst_day} with {share_K.max():.1%}."
    )
    return make("missing", "Missing bars by session", words, [bar], shape)


def missing_by_session(market: Market) -> tuple[np.ndarray, np.ndarray]:
    """(sessions [K], days since 1970-01-01; share of the bars between first and last that is missing [K])."""
    present_BS = market.present_BS
    row_B = np.arange(len(present_BS))[:, None]
    first_S = np.argmax(present_BS, axis=0)
    expected_BS = (row_B >= first_S) & (row_B <= market.last_bar_S)
    session_K, at_B = np.unique(market.session_B, return_inverse=True)
    lacking_K = np.bincount(at_B, (expected_BS & ~present_BS).sum(1), minlength=len(session_K))
    expected_K = np.bincount(at_B, expected_BS.sum(1), minlength=len(session_K))
    return session_K, lacking_K / np.maximum(expected_K, 1)
