"""One measurement in a process of its own: `python bench JOB`, a `Job` as JSON. Prints the result as JSON."""

import json
import sys

from deftly_bench.cases import CASES, Job

if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    print(json.dumps(CASES[job.case](job)))
