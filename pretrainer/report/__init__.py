"""A run told from what its folder holds: one HTML page, and the card that goes with the exported model.

`facts` is all that is known as plain values, `story` folds its events, `weak` says what a person should look at,
`charts` and `page` draw it, `card` and `card_text` write the model and data card, `compare` two sets of digests.
"""
