"""The numbers that suit the demo model: of the demo, and of its quality table."""
from dataclasses import dataclass

SIDE = 256  # px; the demo model was trained on pictures of this size
GUESSER = "inst-demo-guesser.safetensors"


@dataclass(frozen=True)
class Settings:
    """How a style is learned and a photograph repainted; the names of the nodes' inputs, where two would be alike with
    the node before them.

    Attributes:
        guess: learning goes on from what Guess InST Style guesses with ``GUESSER``; else from the word *painting*.
    """

    guess: bool = True
    encoder: str = "direct"
    tokens: int = 4
    learning_steps: int = 10
    batch: int = 2
    learning_rate: float = 0.0005
    strongest: float = 1.0
    strength: float = 0.6
    steps: int = 12
    cfg: float = 3.0
    sampler: str = "ddim"
    scheduler: str = "ddim_uniform"
    color: str = "adain"
    color_amount: float = 1.0


DEMO = Settings()
