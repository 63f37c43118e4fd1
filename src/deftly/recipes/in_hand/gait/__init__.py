"""A periodic movement to start a training from.

Exploration by noise seldom finds how fingers take turns, and on a few cores there is no time to wait for luck. So a
first movement is found by derivative-free search. `gaits` defines a gait, `strokes` how fingertips may turn an object;
`search` finds strokes by CMA-ES and improves the gait that they make by evolution strategies with antithetic sampling;
`dagger` trains a student, which sees what a policy sees, on the gait.
"""
