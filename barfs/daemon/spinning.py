"""Whether to look for the next request before sleeping: by what has been faster lately.

A client on another CPU comes back sooner than a sleeping process wakes up. A client that the
scheduler puts on this process's CPU can't come back before this process sleeps. Which of the two it
is depends on the machine and on what else runs, and it changes. So both are tried and timed.
"""

import os
from typing import Final

# How long to look for a request before sleeping, in seconds.
SPIN: Final = 60e-6

# A round is so many requests. They take 2 ms at 60 us each, so that a round fits into one of the
# loop's turns.
ROUND: Final = 32

# The other way is tried for so many rounds, and adopted if it takes less of the time than this.
TRIAL: Final = 2
BETTER: Final = 0.8

# After how many rounds the other way is tried, at first and at the most. Each trial in vain doubles
# that. At the most it is tried once in a quarter of a second.
FIRST_GAP: Final = 16
MOST_GAP: Final = 1024

# The usual way is taken to have changed if so many rounds in a row take so many times as long as
# usual. Then the other way is tried at once.
SLOW_ROUNDS: Final = 2
SLOW: Final = 2

# After so many looks in vain in a row, looking does not pay.
MISSES: Final = 5


def _can_pay() -> bool:
    """Whether somebody can come while this process looks: not on a single CPU."""
    return len(os.sched_getaffinity(0)) > 1


class Spinning:
    """Chooses between sleeping at once and looking for a request first."""

    def __init__(self) -> None:
        # Whether to look before sleeping; and whether that is the better way, as far as is known.
        # Misses soon tell if it is not.
        self.now = self._usual = _can_pay()
        self._mean = 0.0  # how long a request takes in the usual way, in seconds; 0: not known
        self._gap = self._until_trial = FIRST_GAP  # in rounds
        self._slow = 0  # how many rounds in a row were slow
        self._tried = 0  # rounds of the trial that is under way, which were all better
        self._left = ROUND
        self._began = 0.0
        self._misses_left = MISSES

    def begin(self, now: float) -> None:
        """Begin a round anew: something else was done meanwhile, or nothing at all."""
        self._left, self._began = ROUND, now

    def is_round(self) -> bool:
        """Count a request. Whether a round has ended, which `end_round` is to be told."""
        self._left -= 1
        return not self._left

    def end_round(self, now: float) -> None:
        """A round has ended; choose for the next one."""
        mean = (now - self._began) / ROUND
        self.begin(now)
        if self.now != self._usual:
            self._judge(mean)
            return
        self._until_trial -= 1
        if self._mean and mean > SLOW * self._mean:
            self._slow += 1
            if self._slow == SLOW_ROUNDS:
                self._mean, self._until_trial = mean, 0
        else:
            self._slow = 0
            self._mean = (3 * self._mean + mean) / 4 if self._mean else mean
        if self._until_trial <= 0:
            self._try_other()

    def _try_other(self) -> None:
        self._slow = 0
        self._tried = 0
        if self._usual or _can_pay():
            self.now = not self._usual
        self._until_trial = self._gap

    def _judge(self, mean: float) -> None:
        """One round of a trial took so long for each request, in seconds."""
        if mean > BETTER * self._mean:
            self._give_up()
            return
        self._tried += 1
        if self._tried == TRIAL:
            self._usual, self._mean = self.now, mean
            self._gap = self._until_trial = FIRST_GAP

    def _give_up(self) -> None:
        """The other way is not better. It is tried again later."""
        self.now = self._usual
        self._gap = self._until_trial = min(2 * self._gap, MOST_GAP)

    def hit(self) -> None:
        """A look has found a request."""
        self._misses_left = MISSES

    def missed(self, now: float) -> None:
        """A look was in vain."""
        self._misses_left -= 1
        if not self._misses_left:
            self._usual, self._mean, self._slow = False, 0.0, 0
            self._give_up()
            self._misses_left = MISSES
            self.begin(now)
