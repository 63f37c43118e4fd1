"""One measurement in a process of its own: `python bench JOB`, a `Job` as JSON. Prints the result as JSON."""

import json

from deftly.errors import DeftlyError
from deftly_bench.cases import CASES, Job
from deftly_bench.entry import start


def main(argv: list[str]) -> int:
    """Measure what the words are: one job. Raises DeftlyError if they are none."""
    try:
        (word,) = argv
        job = Job(**json.loads(word))
        case = CASES[job.case]
    except (ValueError, TypeError, KeyError, RecursionError):
        job = '{"case": "raw", "task": "jaka-pick-cube", ...}'
        raise DeftlyError(
            f"python bench takes one job, as {job}: 'deftly bench' gives it those; type that"
        ) from None
    print(json.dumps(case(job)))
    return 0


if __name__ == "__main__":
    start(main)
