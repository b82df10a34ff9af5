"""What the scores of a run's evaluations decide: when its learning rate falls, which state is the best, when it ends."""
import dataclasses

_GAIN = 1e-4                 # relative; a smaller gain is none to the learning rate


@dataclasses.dataclass
class Plateau:
    """Two counters that know nothing of each other. Each starts anew where a score is better, in its own sense.

    For the rate a score is better if it exceeds the last better one by more than a ten-thousandth of it. The rate falls
    when the count of the others exceeds `patience`, and the count starts anew.
    For the best state a score is better if no former one was higher, so ties count. The run ends when the count of the
    others reaches `stop_patience`.

    patience: see above. gamma: what the rate is multiplied by when it falls. stop_patience: see above; 0 never stops.
    warmup_steps: scores of earlier steps do not count for the rate.

    Source: GLIP, solver/lr_scheduler.py (WarmupReduceLROnPlateau) and engine/trainer.py.
    Differs from GLIP: a score of exactly 0 counts for the rate, too; an evaluation during warm-up is not one more step
    of the ramp; the best state is known without `stop_patience`, too; a missing score is refused, not taken for −1.
    """
    patience: int = 3
    gamma: float = 0.1
    warmup_steps: int = 0
    stop_patience: int = 0
    # The state. `bad`, `below_best`: the counts. `gained`: the last score that was better for the rate.
    gained: float | None = None
    bad: int = 0
    drops: int = 0
    best: float = 0.0
    best_step: int | None = None
    below_best: int = 0

    def update(self, score: float, step: int) -> bool:
        """Takes the score of an evaluation after `step` completed updates.

        Returns: whether this is the best state so far.
        Raises: ValueError for a score below 0, or one that is not a number.
        """
        if not score >= 0:
            raise ValueError(f"step {step}: found score {score}, expected a number from 0 on; train.select_by names it")
        if step >= self.warmup_steps:
            if self.gained is None or score > self.gained * (1 + _GAIN):
                self.gained, self.bad = score, 0
            else:
                self.bad += 1
            if self.bad > self.patience:
                self.bad, self.drops = 0, self.drops + 1
        if score < self.best:
            self.below_best += 1
            return False
        self.best, self.best_step, self.below_best = score, step, 0
        return True

    @property
    def factor(self) -> float:
        """Of the base learning rates; `optim.learning_rate` knows their floor."""
        return self.gamma**self.drops

    @property
    def stopped(self) -> bool:
        return 0 < self.stop_patience <= self.below_best

    def state(self) -> dict:
        """What has to be remembered, as JSON can hold it; `dataclasses.replace(plateau, **state)` goes on from it."""
        return {name: getattr(self, name) for name in ("gained", "bad", "drops", "best", "best_step", "below_best")}
