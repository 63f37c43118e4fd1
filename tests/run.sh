#!/bin/sh
# What `make test` runs: tests/run.sh PYTHON [PYTEST_ARGUMENTS...]
#
# Most tests run side by side, a file in one process. Some wait for processes of theirs, so there is one worker more than
# cores. Those in real time run beside them, one after the other: they wait most of the time, and have a core whenever
# they want one, because all others run at the lowest priority. What they print comes after the rest.
set -u
python=$1
shift
workers=$("$python" -c 'import os; print(min(8, (os.cpu_count() or 1) + 1))')

# A test that hangs fails. A process that dies is not replaced, for which pytest-xdist may wait for ever: its tests are left
# out, and the run fails (tests/conftest.py).
side_by_side="--dist loadfile --no-loadscope-reorder --timeout 240 --max-worker-restart 0"
most="not slow and not warp and not vla and not openpi and not realtime"
# Two runs of pytest cannot remember in one place what failed.
apart="cache_dir=.pytest_cache/realtime"

# What failed beside other tests runs once more with nothing beside it; that it failed the first time stays on the screen.
# Status 5: there was no test to run, as with tests/FILE as an argument.
alone() {
    status=$1
    shift
    if [ "$status" -eq 1 ]; then
        echo "once more, alone: what failed beside other tests"
        "$python" -m pytest --timeout 240 --last-failed --last-failed-no-failures none "$@"
        status=$?
    fi
    [ "$status" -eq 5 ] && status=0
    return "$status"
}

printed=$(mktemp)
trap 'rm -f "$printed"' EXIT
# shellcheck disable=SC2086 # options are words
"$python" -m pytest -n 0 $side_by_side -m realtime -o "$apart" "$@" >"$printed" 2>&1 &
realtime=$!
trap 'kill "$realtime" 2>/dev/null; exit 130' INT TERM
# shellcheck disable=SC2086
nice -n 19 "$python" -m pytest -n "$workers" $side_by_side -m "$most" "$@"
others=$?
wait "$realtime"
realtime=$?
cat "$printed"

alone "$others" "$@"
others=$?
alone "$realtime" -m realtime -o "$apart" "$@"
realtime=$?
[ "$others" -eq 0 ] && [ "$realtime" -eq 0 ]
