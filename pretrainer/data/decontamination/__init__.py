"""Evaluation texts are kept out of training: references, their index, and the stage that looks for them."""
