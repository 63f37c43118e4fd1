"""A periodic movement to start a training from.

Exploration by noise seldom finds how fingers take turns, and on a few cores there is no time to wait for luck. So a
first movement is sought without a gradient. `gaits` says what a gait is, `strokes` how tips of fingers may turn what
they hold; `search` finds strokes (CMA-ES) and improves the gait that they make (ascent of an estimated gradient);
`clone` teaches a network to make it from what a policy sees.
"""
