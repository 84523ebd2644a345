"""Scores that stand for what people would prefer: the mean over images of a model's judgement of each."""
