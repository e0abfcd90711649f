"""Where the time stamps of a video stop making sense: a still picture of more than ten minutes, or time going back.

Such a file is read up to there, as one that broke off: frames behind the jump may be right, but when they are shown is
not known, and a jump of an hour in a file of a second would be an hour of one repeated picture.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from echoprune.data import IntArray

# Slide shows and screen recordings of variable frame rate leave a picture standing for minutes, and have to work; ten
# minutes at 2 frames/s are 1,200 samples of one picture. Clocks that are set, wrap around or are spliced jump by hours.
MAX_STILL_S = 600

# Keyframes precede no earlier frame, but stamps rounded twice may; a clock that is set back by less costs nothing.
_BACK_S = 1

# What `incomplete` begins with when it is about time; the class of such videos is "time_jump".
TIME_JUMP = "time jump: "


def goes_back(pts: IntArray, fresh: npt.NDArray[np.bool_], time_base: Fraction) -> tuple[int, str]:
    """(how many leading frames come before time goes back, why), all of them and "" where it never does.

    `pts` (F,): ticks, in decode order. `fresh` (F,) bool: frames that every frame decoded earlier should precede.
    """
    if len(pts) == 0:
        return 0, ""
    # In floating point: differences of damaged stamps do not fit in 64 bits.
    stamps = pts.astype(np.float64)
    before = np.insert(np.maximum.accumulate(stamps)[:-1], 0, stamps[0])
    back = np.flatnonzero(fresh & (before - stamps > float(_BACK_S / time_base)))
    if len(back) == 0:
        return len(pts), ""
    at = int(back[0])
    by_s = (before[at] - stamps[at]) * float(time_base)
    return (
        at,
        f"{TIME_JUMP}time stamps go back by {by_s:.1f} s after {at} frames; convert the file again for the rest",
    )


def stands_still(pts: IntArray, time_base: Fraction) -> tuple[int, str]:
    """(how many leading frames come before a gap of more than MAX_STILL_S, why), all and "" without one.

    `pts` (F,): ticks, ascending.
    """
    gaps_s = np.diff(pts.astype(np.float64)) * float(time_base)
    wide = np.flatnonzero(gaps_s > MAX_STILL_S)
    if len(wide) == 0:
        return len(pts), ""
    at = int(wide[0]) + 1
    return at, (
        f"{TIME_JUMP}after {at} frames the next is {gaps_s[at - 1]:.1f} s later, more than {MAX_STILL_S} s; "
        "convert the file again for the rest"
    )


def last_stands(ticks: int, time_base: Fraction) -> str:
    """Why the last frame cannot stay for `ticks`; "" if it can. It then stays as long as most frames, at most MAX_STILL_S."""
    if ticks * time_base <= MAX_STILL_S:
        return ""
    return f"{TIME_JUMP}the last frame is to stay for {float(ticks * time_base):.1f} s, more than {MAX_STILL_S} s"
