"""A loss scale for denoisers that compute in half precision, where small gradients vanish and large ones overflow."""

INITIAL = 2.0**16
SMALLEST = 2.0**-8
RECOVERY = 50  # good steps after which a scale that backed off is doubled


class LossScale:
    """The rule of Micikevicius et al. 2018 (mixed precision training, section 3.2) and of torch's ``GradScaler``: half
    the scale where a gradient overflows, twice the scale after a while without.

    It never rises above where it began, so that an overflow is not provoked again and again.

    Attributes:
        value: a power of two, by which the loss is multiplied and its gradient divided again.
    """

    def __init__(self):
        self.value, self._good = INITIAL, 0

    @property
    def exhausted(self) -> bool:
        """No smaller scale is worth a try: what overflows now does not do so because of it."""
        return self.value <= SMALLEST

    def back_off(self) -> None:
        """To be called when a gradient was not finite."""
        self.value, self._good = self.value / 2, 0

    def note_good_step(self) -> None:
        """To be called when it was."""
        self._good += 1
        if self._good >= RECOVERY:
            self.value, self._good = min(INITIAL, self.value * 2), 0
