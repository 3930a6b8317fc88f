"""Training of the style encoder behind Guess InST Style: ``accelerate launch tools/train_encoder --help``."""
